//! Role: the spellings of an address and of a name, made from the place itself and not by the code under test.
//! Invariants: every text here is one that some resolver, shell or browser takes for that very place.
//! See: inet_aton(3), RFC 4291 (text forms), UTS 46 (what IDNA maps to what).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Each way to write an address.
pub(crate) fn spell(ip: IpAddr) -> Vec<String> {
    match ip {
        IpAddr::V4(v4) => spell_v4(v4),
        IpAddr::V6(v6) => spell_v6(v6),
    }
}

fn spell_v4(ip: Ipv4Addr) -> Vec<String> {
    let plain = ip.to_string();
    let numbers: [fn(u32) -> String; 5] = [
        |n| n.to_string(),
        |n| format!("0x{n:x}"),
        |n| format!("0X{n:X}"),
        |n| format!("0{n:o}"),
        |n| format!("0x{n:010x}"),
    ];
    let mut spellings: Vec<_> =
        numbers.iter().flat_map(|number| (1..=4).map(|n| parts(ip, n, number))).collect();
    let [a, b, c, d] = ip.octets();
    spellings.push(format!("0x{a:x}.{b}.0{c:o}.{d}"));
    spellings.push(format!("0000{a:o}.{b}.{c}.{d}"));
    let dotted = [&plain, &spellings[0], &spellings[1], &spellings[4]].map(|text| format!("{text}."));
    spellings.extend(dotted);
    spellings.extend(other_scripts(&plain));
    let [.., high, low] = ip.to_ipv6_mapped().segments();
    for mapped in [
        format!("::ffff:{plain}"),
        format!("::ffff:{high:x}:{low:x}"),
        format!("::FFFF:{high:04X}:{low:04X}"),
        format!("0:0:0:0:0:ffff:{high:x}:{low:x}"),
        format!("0000:0000:0000:0000:0000:ffff:{plain}"),
    ] {
        spellings.push(format!("[{mapped}]"));
        spellings.push(mapped);
    }
    spellings
}

/// In so many numbers, the last of which fills the rest.
fn parts(ip: Ipv4Addr, count: usize, number: &fn(u32) -> String) -> String {
    let heads = ip.octets().into_iter().take(count - 1).map(u32::from);
    let rest = ip.to_bits() & u32::MAX.checked_shr(8 * (count as u32 - 1)).unwrap_or_default();
    heads.chain([rest]).map(number).collect::<Vec<_>>().join(".")
}

fn spell_v6(ip: Ipv6Addr) -> Vec<String> {
    let groups = ip.segments();
    let join = |group: fn(&u16) -> String| groups.iter().map(group).collect::<Vec<_>>().join(":");
    let [.., high, low] = groups;
    let head = groups[..6].iter().map(|group| format!("{group:x}")).collect::<Vec<_>>().join(":");
    let tail = Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    let plain = [
        ip.to_string(),
        ip.to_string().to_uppercase(),
        join(|group| format!("{group:x}")),
        join(|group| format!("{group:04x}")),
        join(|group| format!("{group:04X}")),
        format!("{head}:{tail}"),
    ];
    let mut spellings: Vec<_> = plain.iter().map(|text| format!("[{text}]")).collect();
    spellings.extend(plain);
    spellings
}

/// Each way to write a name of lower-case letters, digits and dots.
pub(crate) fn spell_name(name: &str) -> Vec<String> {
    let every_other = name.char_indices().map(|(at, c)| if at % 2 == 0 { c.to_ascii_uppercase() } else { c });
    let mut spellings = vec![
        name.to_owned(),
        name.to_uppercase(),
        every_other.collect(),
        format!("{name}."),
        format!("{}.", name.to_uppercase()),
        format!("{name}。"),
        format!("{name}．"),
        name.replacen('s', "ſ", 1),
    ];
    spellings.extend(other_scripts(name));
    spellings
}

/// What IDNA maps to the same text.
fn other_scripts(text: &str) -> Vec<String> {
    let map = |map: fn(char) -> char| text.chars().map(map).collect::<String>();
    let (first, rest) = text.split_at(1);
    vec![
        map(|c| shifted(c, '０', 'Ａ', 'ａ')),
        map(|c| shifted(c, '𝟎', '𝐀', '𝐚')),
        map(|c| shifted(c, '𝟶', '𝙰', '𝚊')),
        map(circled),
        text.replace('.', "。"),
        text.replace('.', "．"),
        text.replace('.', "｡"),
        // A soft hyphen, a zero-width space, a word joiner and a variation selector are nothing.
        format!("{first}\u{ad}{rest}"),
        format!("{first}\u{200b}{rest}"),
        format!("{first}\u{2060}{rest}"),
        format!("{first}\u{fe0f}{rest}"),
    ]
}

/// The same letter or digit in an alphabet that begins with these.
fn shifted(c: char, zero: char, upper: char, lower: char) -> char {
    let from = |start: char, first: char| {
        char::from_u32(u32::from(start) + u32::from(c) - u32::from(first)).expect("alphabets are whole")
    };
    match c {
        '0'..='9' => from(zero, '0'),
        'A'..='Z' => from(upper, 'A'),
        'a'..='z' => from(lower, 'a'),
        other => other,
    }
}

fn circled(c: char) -> char {
    match c {
        '0' => '⓪',
        '1'..='9' => shifted(c, '\u{245f}', 'Ⓐ', 'ⓐ'),
        other => shifted(other, '0', 'Ⓐ', 'ⓐ'),
    }
}
