//! Role: the load processes of one round, as the process sees them that measures.
//! Invariants: none outlives its `Crew` · what one of them can't do ends the round.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use super::{
    conditions::Conditions,
    plan::{Ask, Mark, Plan, Word},
    subject::spawn_on,
};

/// Load processes.
pub struct Crew {
    hands: Vec<Hand>,
}

struct Hand {
    child: Child,
    asks: ChildStdin,
    words: BufReader<ChildStdout>,
}

impl Crew {
    /// Starts a process for each plan, and waits until everything stands.
    ///
    /// # Errors
    /// What is measured, or the system, does not do its part.
    pub fn start(conditions: &Conditions, plans: &[Plan]) -> Result<Self> {
        let hands: Result<_> = plans.iter().map(|plan| Hand::start(conditions, plan)).collect();
        let mut crew = Self { hands: hands? };
        for hand in &mut crew.hands {
            match hand.hear()? {
                Word::Ready => {}
                other => bail!("a load process said {other:?} before it was ready"),
            }
        }
        Ok(crew)
    }

    /// Lets it flow.
    ///
    /// # Errors
    /// A process has failed.
    pub fn let_flow(&mut self) -> Result<()> {
        for word in self.ask(Ask::Start)? {
            let Word::Started = word else { bail!("a load process said {word:?} where it should start") };
        }
        Ok(())
    }

    /// How far each is.
    ///
    /// # Errors
    /// A process has failed.
    pub fn marks(&mut self) -> Result<Vec<Mark>> {
        let marks = self.ask(Ask::Mark)?.into_iter().map(|word| match word {
            Word::Mark(mark) => Ok(mark),
            other => bail!("a load process said {other:?} where a mark was due"),
        });
        marks.collect()
    }

    /// How long things took in each.
    ///
    /// # Errors
    /// A process has failed.
    pub fn times(&mut self) -> Result<Vec<Vec<(u64, u64)>>> {
        let times = self.ask(Ask::Report)?.into_iter().map(|word| match word {
            Word::Report(times) => Ok(times),
            other => bail!("a load process said {other:?} where its report was due"),
        });
        times.collect()
    }

    /// Asks all at once, then hears all.
    fn ask(&mut self, ask: Ask) -> Result<Vec<Word>> {
        for hand in &mut self.hands {
            hand.tell(&ask)?;
        }
        self.hands.iter_mut().map(Hand::hear).collect()
    }
}

impl Hand {
    fn start(conditions: &Conditions, plan: &Plan) -> Result<Self> {
        let mut command = Command::new(&conditions.program);
        command.arg("load").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = spawn_on(command, &conditions.cores, conditions.urgent)?;
        let (Some(asks), Some(words)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("a load process without pipes")
        };
        let mut hand = Self { child, asks, words: BufReader::new(words) };
        hand.tell(plan)?;
        Ok(hand)
    }

    fn tell(&mut self, what: &impl serde::Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(what)?;
        line.push(b'\n');
        if self.asks.write_all(&line).is_err() {
            // It has ended; its last word says why.
            self.hear()?;
            bail!("a load process does not listen");
        }
        Ok(())
    }

    fn hear(&mut self) -> Result<Word> {
        let mut line = String::new();
        self.words.read_line(&mut line)?;
        if line.is_empty() {
            bail!("a load process ended ({})", self.child.wait()?);
        }
        let word = serde_json::from_str(&line).with_context(|| format!("a load process said {line:?}"))?;
        match word {
            Word::Failed(why) => bail!("the load failed: {why}"),
            word => Ok(word),
        }
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
