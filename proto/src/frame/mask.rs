//! Role: the WebSocket mask, in wide chunks.
//! Invariants: the same bytes masked in any number of pieces come out the same.
//! See: RFC 6455 section 5.3.

/// XORs `payload` with `key`; done twice it is undone. `phase` is how many bytes of the frame's
/// payload went before these.
///
/// A key of zero returns at once: over TLS the key may be zero, and masking costs nothing.
pub fn mask(payload: &mut [u8], key: [u8; 4], phase: usize) {
    if key == [0; 4] {
        return;
    }
    let at = phase % 4;
    let key: [u8; 4] = std::array::from_fn(|i| key[(at + i) % 4]);
    // Whole words, without a branch in the loop: the compiler makes the widest registers of them.
    let word = u64::from_ne_bytes(std::array::from_fn(|i| key[i % 4]));
    let (words, rest) = payload.as_chunks_mut::<8>();
    for bytes in words {
        *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The formula of the RFC, byte by byte.
    fn mask_bytewise(payload: &mut [u8], key: [u8; 4], phase: usize) {
        for (i, byte) in payload.iter_mut().enumerate() {
            *byte ^= key[(phase + i) % 4];
        }
    }

    const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    #[test]
    fn the_example_of_the_rfc_comes_out() {
        let mut hello = *b"Hello";
        mask(&mut hello, KEY, 0);
        assert_eq!(hello, [0x7f, 0x9f, 0x4d, 0x51, 0x58]);
        mask(&mut hello, KEY, 0);
        assert_eq!(&hello, b"Hello");
    }

    #[test]
    fn every_alignment_length_and_phase_is_as_byte_by_byte() {
        let plain: Vec<u8> = (0..=255).collect();
        for start in 0..17 {
            for end in start..=start + 130 {
                for phase in 0..6 {
                    let (mut wide, mut narrow) = (plain.clone(), plain.clone());
                    mask(&mut wide[start..end], KEY, phase);
                    mask_bytewise(&mut narrow[start..end], KEY, phase);
                    assert_eq!(wide, narrow, "{start}..{end} at phase {phase}");
                }
            }
        }
    }

    #[test]
    fn a_key_of_zero_changes_nothing_and_a_huge_phase_wraps() {
        let mut payload = [1, 2, 3];
        mask(&mut payload, [0; 4], 1);
        assert_eq!(payload, [1, 2, 3]);
        mask(&mut payload, KEY, usize::MAX);
        mask(&mut payload, KEY, 3);
        assert_eq!(payload, [1, 2, 3]);
    }

    proptest! {
        #[test]
        fn pieces_come_out_as_the_whole(
            plain in prop::collection::vec(any::<u8>(), 0..4096),
            key: [u8; 4],
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut whole = plain.clone();
            mask_bytewise(&mut whole, key, 0);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(plain.len() + 1)).collect();
            cuts.extend([0, plain.len()]);
            cuts.sort_unstable();
            let mut pieces = plain;
            for cut in cuts.windows(2) {
                mask(&mut pieces[cut[0]..cut[1]], key, cut[0]);
            }
            prop_assert_eq!(pieces, whole);
        }
    }
}
