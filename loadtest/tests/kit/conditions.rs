//! Role: what is wrong with the machine, for whoever wonders why a test failed on it.
//! Invariants: reads what the kernel counts, and judges no test.
//! See: tcp(7), `tcp_mem`; proc(5), `/proc/net/sockstat`.

use std::fs;

/// One sentence for everything that the machine is short of, each on a line of its own; nothing where it has enough.
pub(crate) fn trouble() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let used = tcp_pages(&read("/proc/net/sockstat"));
    let limits = numbers(&read("/proc/sys/net/ipv4/tcp_mem"));
    let netstat = read("/proc/net/netstat");
    let counted =
        ["TCPMemoryPressures", "TCPAbortOnMemory"].map(|name| (name, counter(&netstat, name).unwrap_or(0)));
    tcp_memory(used, &limits, &counted).map(|said| format!("\n{said}")).unwrap_or_default()
}

/// Whether TCP has, or had since this network stands, less memory than it wants.
fn tcp_memory(used: Option<u64>, limits: &[u64], counted: &[(&str, u64)]) -> Option<String> {
    let pressed = used.zip(limits.get(1)).filter(|(used, pressure)| used >= pressure);
    let counted: Vec<_> =
        counted.iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("{name} {n}")).collect();
    if pressed.is_none() && counted.is_empty() {
        return None;
    }
    let used = used.map_or("an unknown number of".to_owned(), |used| used.to_string());
    Some(format!(
        "this machine is short of TCP memory: {used} pages are used, net.ipv4.tcp_mem is {limits:?}, {}",
        if counted.is_empty() { "nothing was counted yet".to_owned() } else { counted.join(", ") }
    ))
}

/// `TCP: inuse 3 orphan 0 tw 0 alloc 4 mem 33`
fn tcp_pages(sockstat: &str) -> Option<u64> {
    let line = sockstat.lines().find_map(|line| line.strip_prefix("TCP: "))?;
    line.split_once("mem ")?.1.trim().parse().ok()
}

fn numbers(text: &str) -> Vec<u64> {
    text.split_ascii_whitespace().map_while(|number| number.parse().ok()).collect()
}

/// A line of names is followed by one of numbers, both with the same word in front.
fn counter(netstat: &str, name: &str) -> Option<u64> {
    let lines: Vec<_> = netstat.lines().collect();
    lines.chunks_exact(2).find_map(|pair| {
        let at = pair[0].split_ascii_whitespace().position(|word| word == name)?;
        pair[1].split_ascii_whitespace().nth(at)?.parse().ok()
    })
}

#[test]
fn a_machine_short_of_tcp_memory_is_named_as_the_trouble() {
    let sockstat = "sockets: used 16\nTCP: inuse 1 orphan 0 tw 0 alloc 1 mem 380\nUDP: inuse 0 mem 0\n";
    let netstat = "TcpExt: SyncookiesSent TCPMemoryPressures\nTcpExt: 7 3\nIpExt: InNoRoutes\nIpExt: 9\n";
    assert_eq!(tcp_pages(sockstat), Some(380));
    assert_eq!(counter(netstat, "TCPMemoryPressures"), Some(3));
    assert_eq!(counter(netstat, "TCPAbortOnMemory"), None);
    assert_eq!(numbers("300\t380\t400\n"), [300, 380, 400]);
    let said = tcp_memory(Some(380), &[300, 380, 400], &[]).expect("the limit is reached");
    assert!(said.starts_with("this machine is short of TCP memory: 380 pages are used"), "{said}");
    let said = tcp_memory(Some(5), &[300, 380, 400], &[("TCPMemoryPressures", 3)]).expect("it was");
    assert!(said.ends_with("TCPMemoryPressures 3"), "{said}");
    assert_eq!(tcp_memory(Some(5), &[300, 380, 400], &[("TCPMemoryPressures", 0)]), None);
    assert!(
        counter(&fs::read_to_string("/proc/net/netstat").expect("Linux has it"), "TCPTimeouts").is_some()
    );
}
