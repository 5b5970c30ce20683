//! Role: a key as the kernel takes it: the structs of linux/tls.h, byte by byte.
//! Invariants: pure · in TLS 1.2 no nonce that the kernel will use is one that we used.
//! See: linux/tls.h (`tls12_crypto_info_*`); the kernel's Documentation/networking/tls.rst.

use zeroize::Zeroizing;

use super::secret::{Cipher, Secret, Version};

/// The longest: version and cipher, 44 bytes of key and nonce, sequence number.
const BYTES_MAX: usize = 4 + 12 + 32 + SEQ_BYTES;
const SEQ_BYTES: usize = 8;
/// The part of a nonce that is the same in all records of TLS 1.2 AES-GCM.
const SALT_BYTES: usize = 4;

/// A direction, by its socket option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// `TLS_TX`
    Out = 1,
    /// `TLS_RX`
    In = 2,
}

/// What `TLS_TX` and `TLS_RX` are set to. For both versions the structs are the same, although
/// their names say 12.
pub(super) struct Info {
    bytes: Zeroizing<[u8; BYTES_MAX]>,
    len: usize,
}

impl Info {
    /// The key for the record of number `seq` and all behind it.
    pub(super) fn new(version: Version, secret: &Secret<'_>, seq: u64) -> Self {
        let (cipher, key, mut nonce) = (secret.cipher(), secret.key(), secret.iv());
        if version == Version::Tls12 && cipher != Cipher::ChaCha20Poly1305 {
            nonce = fresh_nonce(nonce);
        }
        let (salt, iv) = match cipher {
            Cipher::ChaCha20Poly1305 => (&[][..], &nonce[..]),
            _ => nonce.split_at(SALT_BYTES),
        };
        let mut info = Self { bytes: Zeroizing::new([0; BYTES_MAX]), len: 0 };
        info.push(&wire_version(version).to_ne_bytes());
        info.push(&wire_cipher(cipher).to_ne_bytes());
        info.push(iv);
        info.push(key);
        info.push(salt);
        info.push(&seq.to_be_bytes());
        info
    }

    /// Room for what the kernel says about a key of this cipher.
    pub(super) fn empty(cipher: Cipher) -> Self {
        let len = match cipher {
            Cipher::Aes128Gcm => 40,
            Cipher::Aes256Gcm | Cipher::ChaCha20Poly1305 => 56,
        };
        Self { bytes: Zeroizing::new([0; BYTES_MAX]), len }
    }

    fn push(&mut self, part: &[u8]) {
        self.bytes[self.len..self.len + part.len()].copy_from_slice(part);
        self.len += part.len();
    }

    /// For the system call.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// For the system call that asks.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }

    /// The number of the next record.
    pub(super) fn seq(&self) -> u64 {
        self.bytes().last_chunk::<SEQ_BYTES>().map_or(0, |seq| u64::from_be_bytes(*seq))
    }
}

/// In TLS 1.2 AES-GCM the end of each nonce travels, and whoever seals may choose it. We take the
/// initial vector XOR the number, as others do; the kernel adds one for each record. Starting where
/// we stopped, it would come upon nonces of ours, which gives the key away. So it starts in another
/// half of all numbers, which none of fewer than 2^32 records leaves.
fn fresh_nonce(mut nonce: [u8; 12]) -> [u8; 12] {
    nonce[SALT_BYTES] ^= 0x80;
    nonce[8..].fill(0);
    nonce
}

const fn wire_version(version: Version) -> u16 {
    match version {
        Version::Tls12 => 0x303,
        Version::Tls13 => 0x304,
    }
}

const fn wire_cipher(cipher: Cipher) -> u16 {
    match cipher {
        Cipher::Aes128Gcm => 51,
        Cipher::Aes256Gcm => 52,
        Cipher::ChaCha20Poly1305 => 54,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IV: [u8; 12] = [0xa0, 0xa1, 0xa2, 0xa3, 0xb0, 0xb1, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7];

    fn info(version: Version, cipher: Cipher) -> Vec<u8> {
        let key = if cipher == Cipher::Aes128Gcm { [7; 16].to_vec() } else { [7; 32].to_vec() };
        let info = Info::new(version, &Secret::new(cipher, &key, IV), 0x0102);
        assert_eq!(info.seq(), 0x0102);
        assert_eq!(info.bytes().len(), Info::empty(cipher).bytes().len());
        info.bytes().to_vec()
    }

    fn laid_out(head: [u8; 4], iv: &[u8], key_bytes: usize, salt: &[u8]) -> Vec<u8> {
        [&head[..], iv, &vec![7; key_bytes], salt, &[0, 0, 0, 0, 0, 0, 1, 2]].concat()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn each_cipher_lies_as_the_kernels_header_has_it() {
        let (salt, iv) = IV.split_at(4);
        let aes128 = laid_out([4, 3, 51, 0], iv, 16, salt);
        let aes256 = laid_out([4, 3, 52, 0], iv, 32, salt);
        assert_eq!((aes128.len(), aes256.len()), (40, 56));
        assert_eq!(info(Version::Tls13, Cipher::Aes128Gcm), aes128);
        assert_eq!(info(Version::Tls13, Cipher::Aes256Gcm), aes256);
        let chacha = |low| laid_out([low, 3, 54, 0], &IV, 32, &[]);
        assert_eq!(info(Version::Tls13, Cipher::ChaCha20Poly1305), chacha(4));
        assert_eq!(info(Version::Tls12, Cipher::ChaCha20Poly1305), chacha(3));
        let fresh = [0x30, 0xb1, 0xb2, 0xb3, 0, 0, 0, 0];
        assert_eq!(info(Version::Tls12, Cipher::Aes128Gcm), laid_out([3, 3, 51, 0], &fresh, 16, salt));
        assert_eq!(info(Version::Tls12, Cipher::Aes256Gcm), laid_out([3, 3, 52, 0], &fresh, 32, salt));
    }

    #[test]
    fn the_sizes_are_those_of_the_kernels_structs() {
        assert_eq!(Info::empty(Cipher::Aes128Gcm).len, size_of::<libc::tls12_crypto_info_aes_gcm_128>());
        assert_eq!(Info::empty(Cipher::Aes256Gcm).len, size_of::<libc::tls12_crypto_info_aes_gcm_256>());
        let chacha = size_of::<libc::tls12_crypto_info_chacha20_poly1305>();
        assert_eq!(Info::empty(Cipher::ChaCha20Poly1305).len, chacha);
    }

    #[test]
    fn in_tls_1_2_the_kernel_never_comes_upon_a_nonce_of_ours() {
        for iv in [IV, [0; 12], [0xff; 12], [1; 12]] {
            let start = u64::from_be_bytes(*fresh_nonce(iv).last_chunk::<8>().unwrap());
            let ours = u64::from_be_bytes(*iv.last_chunk::<8>().unwrap());
            // All of ours, up to the limit of a key and the few alerts behind it, have these bits.
            let high = !(u64::from(u32::MAX));
            assert_ne!(start & high, ours & high);
            assert_eq!(start & high, (start + u64::from(u32::MAX)) & high);
            assert_eq!(fresh_nonce(iv)[..4], iv[..4]);
        }
    }
}
