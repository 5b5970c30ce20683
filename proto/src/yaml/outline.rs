//! Role: where in its file everything stands, for what is refused only after the file was read: by the system, or by time.
//! Invariants: nothing of what was written is kept but keys that the programs know · an error that comes from here has
//! its file, and line and column where there is a text.
//! See: `fault`, for what is refused while the file is read.

use std::{error::Error, fmt, path::Path, sync::Arc};

use zeroize::Zeroizing;

use super::{
    fault::{Place, Step, write_path},
    keys,
    tree::{Node, Shape},
};

/// The places of a text, or of a part of it. That of a configuration which a program made has none.
#[derive(Clone, Default)]
pub struct Outline {
    part: Option<Arc<Part>>,
    /// The way to it from the root.
    path: Vec<Step>,
}

/// A part of a text.
struct Part {
    file: Arc<Path>,
    /// Without values.
    node: Node,
}

/// A place in a file: `agent.yaml: line 7 column 5: endpoints[0].ca_file`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spot(Box<Way>);

/// Behind a pointer, so that results stay small where nothing is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Way {
    text: Option<(Arc<Path>, Place)>,
    path: Vec<Step>,
}

/// Something about what stands at a spot: an error, or words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located<E> {
    /// Where.
    pub spot: Spot,
    /// What.
    pub what: E,
}

impl Outline {
    /// That of a text in `file`.
    pub(super) fn new(file: &Path, root: &Node) -> Self {
        let part = Part { file: file.into(), node: root.without_values() };
        Self { part: Some(Arc::new(part)), path: Vec::new() }
    }

    /// The part at the end of `path`; where there is none, the last one on the way.
    #[must_use]
    pub fn within(&self, path: &[Step]) -> Self {
        let (found, path) = self.find(path);
        let part = found.map(|(file, node)| Arc::new(Part { file: file.clone(), node: node.clone() }));
        Self { part, path }
    }

    /// Where the value at the end of `path` stands, or the last thing on the way that is there.
    pub fn spot(&self, path: &[Step]) -> Spot {
        let (found, path) = self.find(path);
        Spot(Box::new(Way { text: found.map(|(file, node)| (file.clone(), node.place)), path }))
    }

    /// What is at the end of `path`, if there is a text, and the way there from its root.
    fn find(&self, path: &[Step]) -> (Option<(&Arc<Path>, &Node)>, Vec<Step>) {
        let found = self.part.as_deref().map(|Part { file, node }| (file, node.find(path)));
        let walked = found.map_or(path.len(), |(_, (_, walked))| walked);
        (found.map(|(file, (node, _))| (file, node)), [&self.path, &path[..walked]].concat())
    }
}

impl fmt::Debug for Outline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Outline({})", self.spot(&[]))
    }
}

impl PartialEq for Outline {
    /// The same part of the same file.
    fn eq(&self, other: &Self) -> bool {
        self.spot(&[]) == other.spot(&[])
    }
}

impl Eq for Outline {}

impl Node {
    /// The same without what was written: of the keys, those that are known.
    fn without_values(&self) -> Self {
        let key = |key: &Self| {
            let text = match &key.shape {
                Shape::Scalar { text, .. } => keys::known(text).unwrap_or_default(),
                Shape::List(_) | Shape::Map(_) => "",
            };
            let shape = Shape::Scalar { text: Zeroizing::new(text.to_owned()), plain: false };
            Self { place: key.place, tag: None, shape }
        };
        let shape = match &self.shape {
            Shape::Scalar { .. } => Shape::nothing(),
            Shape::List(items) => Shape::List(items.iter().map(Self::without_values).collect()),
            Shape::Map(pairs) => {
                Shape::Map(pairs.iter().map(|(name, value)| (key(name), value.without_values())).collect())
            }
        };
        Self { place: self.place, tag: None, shape }
    }
}

impl Spot {
    pub(super) fn new(file: &Path, root: &Node, path: &[Step]) -> Self {
        let (node, walked) = root.find(path);
        Self(Box::new(Way { text: Some((file.into(), node.place)), path: path[..walked].to_vec() }))
    }

    /// That which is to be said of it.
    pub fn about<E>(self, what: E) -> Located<E> {
        Located { spot: self, what }
    }
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Way { text, path } = &*self.0;
        if let Some((file, Place { line, column })) = text {
            write!(f, "{}: line {line} column {column}", file.display())?;
            f.write_str(if path.is_empty() { "" } else { ": " })?;
        }
        write_path(f, path)
    }
}

impl<E> Located<E> {
    /// The same spot, and what `of` makes of what is there.
    pub fn map<F>(self, of: impl FnOnce(E) -> F) -> Located<F> {
        self.spot.about(of(self.what))
    }
}

impl<E: fmt::Display> fmt::Display for Located<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { spot, what } = self;
        match &*spot.0 {
            Way { text: None, path } if path.is_empty() => write!(f, "{what}"),
            _ => write!(f, "{spot}: {what}"),
        }
    }
}

impl<E: Error> Error for Located<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.what.source()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Document, *};

    #[test]
    fn an_outline_knows_every_place_and_nothing_of_what_stands_there() {
        let text = "state_dir: swordfish\nendpoints:\n  - !SelfHosted { gateway: swordfish, swordfish: [swordfish] }\n";
        let outline = Document::parse(text).unwrap().outline(Path::new("etc/agent.yaml"));
        let node = &outline.part.as_ref().unwrap().node;
        assert!(node.values().iter().all(|text| text.is_empty()));
        for (path, says) in [
            (&[][..], "etc/agent.yaml: line 1 column 1"),
            (&["state_dir".into()], "etc/agent.yaml: line 1 column 12: state_dir"),
            (&["endpoints".into(), 0.into()], "etc/agent.yaml: line 3 column 5: endpoints[0]"),
            (
                &["endpoints".into(), 0.into(), "gateway".into()],
                "etc/agent.yaml: line 3 column 28: endpoints[0].gateway",
            ),
            (
                &["endpoints".into(), 0.into(), "domain".into()],
                "etc/agent.yaml: line 3 column 5: endpoints[0]",
            ),
        ] {
            assert_eq!(outline.spot(path).to_string(), says);
            let (above, below) = path.split_at(path.len() / 2);
            assert_eq!(outline.within(above).spot(below).to_string(), says);
        }
        assert_eq!(format!("{outline:?}"), "Outline(etc/agent.yaml: line 1 column 1)");
    }

    #[test]
    fn what_was_read_from_no_file_is_called_by_its_path_alone() {
        let outline = Outline::default().within(&["endpoints".into(), 1.into()]);
        let located = outline.spot(&["token".into()]).about("no good");
        assert_eq!(located.to_string(), "endpoints[1].token: no good");
        assert_eq!(located.map(str::len).to_string(), "endpoints[1].token: 7");
        assert_eq!(Outline::default().spot(&[]).about("no good").to_string(), "no good");
    }
}
