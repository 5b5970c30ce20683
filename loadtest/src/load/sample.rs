//! Role: what a process has cost so far: CPU time and memory, read from /proc.
//! Invariants: nothing is estimated: what can't be read is an error · reading costs the process nothing.
//! See: proc(5); Documentation/scheduler/sched-stats.rst of the kernel.

use std::{collections::BTreeMap, fs, io, path::Path};

/// A thread's number, unique on the machine while it lives.
type Tid = i32;

/// The CPU time of some processes, and of the kernel on the cores that they run on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cpu {
    tasks: BTreeMap<Tid, Task>,
    softirq_ns: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Task {
    name: String,
    ns: u64,
}

/// What was used between two samples.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Used {
    /// By the processes, and by the softirq threads of their cores.
    pub ns: u64,
    /// Of it, by the softirq threads.
    pub softirq_ns: u64,
    /// By each thread that did anything, by name, the busiest first.
    pub threads: Vec<(String, u64)>,
}

impl Cpu {
    /// Samples `pids`: the sum of `/proc/PID/task/*/schedstat` (nanoseconds on a core), and the same of
    /// `ksoftirqd/N` for each core N in `cores`. What the network stack does in a process's own system
    /// calls is charged to the process by the kernel; what it puts off is done by ksoftirqd, and would be
    /// nobody's otherwise, which makes whatever works in large batches look 5 to 25 % better than it is.
    ///
    /// # Errors
    /// A process is gone.
    pub fn sample(pids: &[i32], cores: &[Softirq]) -> io::Result<Self> {
        let mut tasks = BTreeMap::new();
        for pid in pids {
            for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
                let entry = entry?;
                let Some(tid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                    continue;
                };
                // A thread may end while we look.
                if let (Ok(ns), Ok(name)) =
                    (on_core_ns(&entry.path()), fs::read_to_string(entry.path().join("comm")))
                {
                    tasks.insert(tid, Task { name: name.trim().to_owned(), ns });
                }
            }
        }
        let mut softirq_ns = 0;
        for Softirq { pid } in cores {
            softirq_ns += on_core_ns(Path::new(&format!("/proc/{pid}")))?;
        }
        Ok(Self { tasks, softirq_ns })
    }

    /// What was used since `before`. Threads that have ended meanwhile are not counted.
    pub fn since(&self, before: &Self) -> Used {
        let softirq_ns = self.softirq_ns.saturating_sub(before.softirq_ns);
        let mut threads: Vec<(String, u64)> = Vec::new();
        for (tid, task) in &self.tasks {
            let earlier = before.tasks.get(tid).map_or(0, |task| task.ns);
            let ns = task.ns.saturating_sub(earlier);
            if ns > 0 {
                threads.push((task.name.clone(), ns));
            }
        }
        threads.sort_by_key(|(_, ns)| std::cmp::Reverse(*ns));
        let ns = threads.iter().map(|(_, ns)| ns).sum::<u64>() + softirq_ns;
        Used { ns, softirq_ns, threads }
    }
}

/// The kernel's softirq thread of one core.
#[derive(Debug, Clone, Copy)]
pub struct Softirq {
    pid: i32,
}

impl Softirq {
    /// Finds those of `cores`. In a container they can't be seen: then there are none.
    pub fn find(cores: &[usize]) -> Vec<Self> {
        let names: Vec<_> = cores.iter().map(|core| format!("ksoftirqd/{core}")).collect();
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let of_these = |entry: &fs::DirEntry| {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            names.iter().any(|wanted| wanted == name.trim())
        };
        let numbered = entries.flatten().filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            Some((pid, entry))
        });
        numbered.filter(|(_, entry)| of_these(entry)).map(|(pid, _)| Self { pid }).collect()
    }
}

fn on_core_ns(dir: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(dir.join("schedstat"))?;
    parse_schedstat(&text).ok_or_else(|| no_sense(&dir.join("schedstat"), &text))
}

/// The first of three numbers: nanoseconds on a core.
fn parse_schedstat(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

/// The memory of some processes, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// What they have written to and only they have: heap and stacks, but no programs' text.
    pub user_bytes: u64,
    /// All that is resident.
    pub rss_bytes: u64,
}

impl Memory {
    /// Samples `pids`: `RssAnon` and `VmRSS` of `/proc/PID/status`. What the kernel holds for sockets is
    /// in neither: it costs every forwarder the same.
    ///
    /// # Errors
    /// A process is gone.
    pub fn sample(pids: &[i32]) -> io::Result<Self> {
        let mut all = Self::default();
        for pid in pids {
            let path = format!("/proc/{pid}/status");
            let text = fs::read_to_string(&path)?;
            let one = Self::parse(&text).ok_or_else(|| no_sense(Path::new(&path), &text))?;
            all.user_bytes += one.user_bytes;
            all.rss_bytes += one.rss_bytes;
        }
        Ok(all)
    }

    fn parse(status: &str) -> Option<Self> {
        Some(Self { user_bytes: kib(status, "RssAnon:")? << 10, rss_bytes: kib(status, "VmRSS:")? << 10 })
    }
}

/// `Key:   123 kB`
fn kib(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// How busy the whole machine has been, whoever it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Machine {
    busy_ticks: u64,
    all_ticks: u64,
    cores: u32,
}

impl Machine {
    /// Samples `/proc/stat`. The kernel counts by ticks of some milliseconds: good for a hundredth of a core
    /// in a window of seconds, no better.
    ///
    /// # Errors
    /// There is no such file.
    pub fn sample() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/stat")?;
        Self::parse(&text).ok_or_else(|| no_sense(Path::new("/proc/stat"), &text))
    }

    /// `cpu  user nice system idle iowait irq softirq steal ..`, then the same for each core.
    fn parse(text: &str) -> Option<Self> {
        let all = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<u64> = all.split_ascii_whitespace().take(8).map_while(|n| n.parse().ok()).collect();
        let [.., idle, iowait, _, _, _] = ticks[..] else { return None };
        let all_ticks = ticks.iter().sum();
        let is_core = |line: &&str| {
            line.strip_prefix("cpu").is_some_and(|n| n.starts_with(|c: char| c.is_ascii_digit()))
        };
        let cores = u32::try_from(text.lines().filter(is_core).count()).ok()?;
        Some(Self { busy_ticks: all_ticks - idle - iowait, all_ticks, cores })
    }

    /// How many cores were busy since `before`.
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    pub fn busy_cores_since(&self, before: &Self) -> f64 {
        let all = self.all_ticks.saturating_sub(before.all_ticks).max(1);
        let busy = self.busy_ticks.saturating_sub(before.busy_ticks);
        f64::from(self.cores) * busy as f64 / all as f64
    }
}

fn no_sense(path: &Path, text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{} makes no sense: {text:?}", path.display()))
}

/// A process and its children, grandchildren and so on.
pub fn family(pid: i32) -> Vec<i32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(parent) = all.get(next) {
        let path = format!("/proc/{parent}/task/{parent}/children");
        let children = fs::read_to_string(path).unwrap_or_default();
        all.extend(children.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        next += 1;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_text_is_read() {
        assert_eq!(parse_schedstat("107346626 15111911 508\n"), Some(107_346_626));
        assert_eq!(parse_schedstat(""), None);
        let status = "Name:\tgateway\nVmRSS:\t    9000 kB\nRssAnon:\t    1234 kB\nRssFile:\t    7766 kB\n";
        let memory = Memory { user_bytes: 1234 << 10, rss_bytes: 9000 << 10 };
        assert_eq!(Memory::parse(status), Some(memory));
        assert_eq!(Memory::parse("Name:\tkthreadd\n"), None);
    }

    #[test]
    fn only_what_was_used_in_between_counts() {
        let sample = |a, b, softirq_ns| {
            let task = |name: &str, ns| Task { name: name.to_owned(), ns };
            Cpu { tasks: [(1, task("main", a)), (2, task("worker-0", b))].into(), softirq_ns }
        };
        let used = sample(5, 1_100, 70).since(&sample(5, 100, 50));
        assert_eq!(used, Used { ns: 1_020, softirq_ns: 20, threads: vec![("worker-0".to_owned(), 1_000)] });
    }

    #[test]
    fn the_machine_is_as_busy_as_its_cores() {
        let stat = |user, idle| {
            let text = format!("cpu  {user} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 0 0 1\ncpu1 1 0 0 1\nintr 1\n");
            Machine::parse(&text).unwrap()
        };
        assert_eq!(stat(150, 150).busy_cores_since(&stat(50, 50)), 1.0);
        assert_eq!(stat(50, 50).busy_cores_since(&stat(50, 50)), 0.0);
        assert_eq!(Machine::parse("intr 1\n"), None);
        assert!(Machine::sample().unwrap().cores > 0);
    }

    #[test]
    fn our_own_cost_is_seen() {
        let me = [std::process::id().cast_signed()];
        let before = Cpu::sample(&me, &[]).unwrap();
        let mut sum = 0_u64;
        while Cpu::sample(&me, &[]).unwrap().since(&before).ns == 0 {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(Memory::sample(&me).unwrap().user_bytes > 0);
        assert!(Cpu::sample(&[0], &[]).is_err());
        assert_eq!(family(me[0])[0], me[0]);
    }
}
