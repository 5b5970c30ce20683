//! Role: TLS records: sealing and opening them, in one pass between two buffers.
//! Invariants: pure, no socket, no allocation a record · a sequence number is used once; at the
//! limit sealing stops · what can't be opened is never told as data · no input panics.
//! See: RFC 8446 §5; RFC 5246 §6.2.3.3, RFC 5288, RFC 7905 (TLS 1.2).

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use rustls::{ContentType, crypto::cipher::AeadKey};

use super::{
    fault::TlsError,
    info::Info,
    secret::{Cipher, Secret, Version},
};

/// A record's header: type, version, length.
pub const HEADER_BYTES: usize = 5;
/// The most that one record carries.
pub const PLAIN_BYTES_MAX: usize = 1 << 14;
/// The longest record, header included, of either version.
pub const RECORD_BYTES_MAX: usize = HEADER_BYTES + PLAIN_BYTES_MAX + 2048;
/// What sealing adds at most, header included.
pub(crate) const OVERHEAD_BYTES_MAX: usize = HEADER_BYTES + EXPLICIT_BYTES + TAG_BYTES;

const TAG_BYTES: usize = 16;
/// The part of a TLS 1.2 GCM nonce that travels.
const EXPLICIT_BYTES: usize = 8;
/// The longest key.
const RAW_BYTES: usize = 32;
/// No sequence number comes near its end, whatever a suite allows.
const SEQUENCE_MAX: u64 = u64::MAX - (1 << 16);

/// What sealing and opening have in common: a key, and where its nonces are.
struct Keyed {
    key: LessSafeKey,
    /// The same as it came, for the kernel; wiped when dropped.
    raw: AeadKey,
    cipher: Cipher,
    iv: [u8; NONCE_LEN],
    seq: u64,
    version: Version,
    /// Of each record's nonce, so many bytes travel in front of the payload.
    explicit_bytes: usize,
}

impl Keyed {
    fn new(version: Version, seq: u64, secret: &Secret<'_>) -> Result<Self, TlsError> {
        let algorithm = match secret.cipher() {
            Cipher::Aes128Gcm => &AES_128_GCM,
            Cipher::Aes256Gcm => &AES_256_GCM,
            Cipher::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        let key = UnboundKey::new(algorithm, secret.key())
            .map_err(|_| rustls::Error::General("a key of the wrong length".into()))?;
        let mut raw = [0; RAW_BYTES];
        raw[..secret.key().len()].copy_from_slice(secret.key());
        let explicit = version == Version::Tls12 && secret.cipher() != Cipher::ChaCha20Poly1305;
        let explicit_bytes = if explicit { EXPLICIT_BYTES } else { 0 };
        let (key, raw) = (LessSafeKey::new(key), AeadKey::from(raw));
        Ok(Self { key, raw, cipher: secret.cipher(), iv: secret.iv(), seq, version, explicit_bytes })
    }

    /// The key and where it stands, for the kernel to go on with.
    fn info(&self) -> Info {
        let bytes = if self.cipher == Cipher::Aes128Gcm { 16 } else { RAW_BYTES };
        Info::new(self.version, &Secret::new(self.cipher, &self.raw.as_ref()[..bytes], self.iv), self.seq)
    }

    /// The initial vector, with the sequence number over its end.
    fn nonce(&self) -> [u8; NONCE_LEN] {
        let mut nonce = self.iv;
        for (byte, seq) in nonce[NONCE_LEN - 8..].iter_mut().zip(self.seq.to_be_bytes()) {
            *byte ^= seq;
        }
        nonce
    }

    /// TLS 1.3 authenticates the header as it travels, TLS 1.2 sequence number and the header that
    /// the plaintext would have.
    fn associated(&self, header: [u8; HEADER_BYTES], plain_bytes: usize) -> Aad<Associated> {
        let mut bytes = [0; 8 + HEADER_BYTES];
        match self.version {
            Version::Tls13 => {
                bytes[..HEADER_BYTES].copy_from_slice(&header);
                Aad::from(Associated { bytes, len: HEADER_BYTES })
            }
            Version::Tls12 => {
                bytes[..8].copy_from_slice(&self.seq.to_be_bytes());
                bytes[8..].copy_from_slice(&header);
                bytes[11..].copy_from_slice(&short(plain_bytes));
                Aad::from(Associated { bytes, len: 8 + HEADER_BYTES })
            }
        }
    }
}

struct Associated {
    bytes: [u8; 8 + HEADER_BYTES],
    len: usize,
}

impl AsRef<[u8]> for Associated {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A record's length as it travels; no record comes near 64 KiB.
fn short(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes()
}

/// Seals what goes out.
pub struct Sealer {
    keyed: Keyed,
    /// Records that this key may seal.
    limit: u64,
}

impl Sealer {
    /// With a key that has sealed `seq` records and may seal `limit`.
    ///
    /// # Errors
    /// The key is not one of its cipher.
    pub fn new(version: Version, seq: u64, limit: u64, secret: &Secret<'_>) -> Result<Self, TlsError> {
        Ok(Self { keyed: Keyed::new(version, seq, secret)?, limit: limit.min(SEQUENCE_MAX) })
    }

    /// The version it seals for.
    pub fn version(&self) -> Version {
        self.keyed.version
    }

    /// How many records a key may seal.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Whose key it is.
    pub(super) fn cipher(&self) -> Cipher {
        self.keyed.cipher
    }

    /// The number of the next record.
    pub(super) fn seq(&self) -> u64 {
        self.keyed.seq
    }

    /// For the kernel. Nothing may be sealed here behind it.
    pub(super) fn info(&self) -> Info {
        self.keyed.info()
    }

    /// Whether a new key is due. What can't wait for one (an alert) can still be sealed.
    pub(crate) fn is_spent(&self) -> bool {
        self.keyed.seq >= self.limit
    }

    #[cfg(test)]
    pub(super) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Where the payload begins in a sealed record.
    pub(crate) fn payload_at(&self) -> usize {
        HEADER_BYTES + self.keyed.explicit_bytes
    }

    /// How long a record with so much in it is.
    pub(crate) fn sealed_bytes(&self, plain_bytes: usize) -> usize {
        self.payload_at() + plain_bytes + self.kind_bytes() + TAG_BYTES
    }

    /// How much plaintext fits into one record in a room of so many bytes.
    pub(crate) fn plain_bytes_in(&self, room_bytes: usize) -> usize {
        room_bytes.saturating_sub(self.sealed_bytes(0)).min(PLAIN_BYTES_MAX)
    }

    /// In TLS 1.3 the type is sealed too, behind the payload.
    fn kind_bytes(&self) -> usize {
        usize::from(self.keyed.version == Version::Tls13)
    }

    /// Seals `plain` into the front of `out`; returns the record's length.
    ///
    /// # Errors
    /// The key is used up.
    ///
    /// # Panics
    /// `out` is shorter than `Sealer::sealed_bytes` says, or `plain` longer than a record.
    pub fn seal(&mut self, kind: ContentType, plain: &[u8], out: &mut [u8]) -> Result<usize, TlsError> {
        let (head, payload, tail) = self.cut(out, plain.len());
        let (nonce, aad) = self.begin(kind, head, plain.len())?;
        let kind = [u8::from(kind)];
        self.keyed
            .key
            .seal_out_of_place_scatter(nonce, aad, plain, payload, &kind[..self.kind_bytes()], tail)
            .map_err(|_| TlsError::UsedUp)?;
        self.keyed.seq += 1;
        Ok(self.sealed_bytes(plain.len()))
    }

    /// Seals the plaintext that lies already where it is sealed to: `plain_bytes` from
    /// [`Sealer::payload_at`] on.
    ///
    /// # Errors
    /// As [`Sealer::seal`].
    ///
    /// # Panics
    /// As [`Sealer::seal`].
    pub(crate) fn seal_in_place(
        &mut self,
        kind: ContentType,
        plain_bytes: usize,
        out: &mut [u8],
    ) -> Result<usize, TlsError> {
        let (head, payload, tail) = self.cut(out, plain_bytes);
        let (nonce, aad) = self.begin(kind, head, plain_bytes)?;
        let kind = [u8::from(kind)];
        self.keyed
            .key
            .seal_in_place_scatter(nonce, aad, payload, &kind[..self.kind_bytes()], tail)
            .map_err(|_| TlsError::UsedUp)?;
        self.keyed.seq += 1;
        Ok(self.sealed_bytes(plain_bytes))
    }

    fn cut<'a>(&self, out: &'a mut [u8], plain_bytes: usize) -> (&'a mut [u8], &'a mut [u8], &'a mut [u8]) {
        assert!(plain_bytes <= PLAIN_BYTES_MAX, "the caller cuts into records");
        let (head, rest) = out[..self.sealed_bytes(plain_bytes)].split_at_mut(self.payload_at());
        let (payload, tail) = rest.split_at_mut(plain_bytes);
        (head, payload, tail)
    }

    /// Writes what stands in front of the payload.
    fn begin(
        &self,
        kind: ContentType,
        head: &mut [u8],
        plain_bytes: usize,
    ) -> Result<(Nonce, Aad<Associated>), TlsError> {
        if self.keyed.seq >= SEQUENCE_MAX + (1 << 8) {
            return Err(TlsError::UsedUp);
        }
        let outer = match self.keyed.version {
            Version::Tls12 => kind,
            Version::Tls13 => ContentType::ApplicationData,
        };
        let [high, low] = short(self.sealed_bytes(plain_bytes) - HEADER_BYTES);
        let header = [u8::from(outer), 3, 3, high, low];
        let nonce = self.keyed.nonce();
        head[..HEADER_BYTES].copy_from_slice(&header);
        head[HEADER_BYTES..].copy_from_slice(&nonce[NONCE_LEN - self.keyed.explicit_bytes..]);
        Ok((Nonce::assume_unique_for_key(nonce), self.keyed.associated(header, plain_bytes)))
    }
}

/// Opens what comes in.
pub struct Opener(Keyed);

impl Opener {
    /// With a key that has opened `seq` records.
    ///
    /// # Errors
    /// The key is not one of its cipher.
    pub fn new(version: Version, seq: u64, secret: &Secret<'_>) -> Result<Self, TlsError> {
        Ok(Self(Keyed::new(version, seq, secret)?))
    }

    /// For the kernel.
    pub(super) fn info(&self) -> Info {
        self.0.info()
    }

    /// The version it opens for.
    pub fn version(&self) -> Version {
        self.0.version
    }

    /// The length of the record that `bytes` begin with, as soon as it can be told.
    ///
    /// # Errors
    /// What comes is no record that may come here.
    pub fn record_bytes(&self, bytes: &[u8]) -> Result<Option<usize>, TlsError> {
        let Some(&[kind, _, _, high, low]) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let extra_bytes = match (self.0.version, ContentType::from(kind)) {
            (Version::Tls13, ContentType::ApplicationData) => 256,
            (Version::Tls12, ContentType::ApplicationData | ContentType::Alert | ContentType::Handshake) => {
                2048
            }
            (_, ContentType::ChangeCipherSpec) => return Err(TlsError::Unexpected("a change of ciphers")),
            _ => return Err(TlsError::Unexpected("a record of this type")),
        };
        let bytes = usize::from(u16::from_be_bytes([high, low]));
        if bytes > PLAIN_BYTES_MAX + extra_bytes {
            return Err(TlsError::TooLong);
        }
        Ok(Some(HEADER_BYTES + bytes))
    }

    /// How much room opening a record of this length takes: its payload and, in TLS 1.3, type and
    /// padding.
    ///
    /// # Errors
    /// The record is too short to be one.
    pub fn room_bytes(&self, record_bytes: usize) -> Result<usize, TlsError> {
        record_bytes.checked_sub(HEADER_BYTES + self.0.explicit_bytes + TAG_BYTES).ok_or(TlsError::BadRecord)
    }

    /// Opens a whole record into the front of `out`; returns its type and the payload's length.
    ///
    /// # Errors
    /// The record is not what was sealed, or what was sealed is nothing that may be: the connection
    /// can't go on. `out` holds nothing of worth then.
    ///
    /// # Panics
    /// `record` is shorter than its header, or `out` than [`Opener::room_bytes`] says.
    pub fn open(&mut self, record: &[u8], out: &mut [u8]) -> Result<(ContentType, usize), TlsError> {
        let room_bytes = self.room_bytes(record.len())?;
        let out = &mut out[..room_bytes];
        let (head, rest) = record.split_at(HEADER_BYTES + self.0.explicit_bytes);
        let (payload, tag) = rest.split_at(room_bytes);
        let (header, explicit) = head.split_at(HEADER_BYTES);
        let mut nonce = self.0.nonce();
        nonce[NONCE_LEN - explicit.len()..].copy_from_slice(explicit);
        let header = [header[0], header[1], header[2], header[3], header[4]];
        let aad = self.0.associated(header, room_bytes);
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.0.key.open_separate_gather(nonce, aad, payload, tag, out).map_err(|_| TlsError::BadRecord)?;
        self.0.seq = self.0.seq.checked_add(1).ok_or(TlsError::UsedUp)?;
        match self.0.version {
            Version::Tls12 if room_bytes > PLAIN_BYTES_MAX => Err(TlsError::TooLong),
            Version::Tls12 => Ok((ContentType::from(header[0]), room_bytes)),
            Version::Tls13 if room_bytes > PLAIN_BYTES_MAX + 1 => Err(TlsError::TooLong),
            Version::Tls13 => {
                let at = out.iter().rposition(|&byte| byte != 0);
                let at = at.ok_or(TlsError::Unexpected("a record of no type"))?;
                Ok((ContentType::from(out[at]), at))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [(Version, Cipher); 6] = [
        (Version::Tls12, Cipher::Aes128Gcm),
        (Version::Tls12, Cipher::Aes256Gcm),
        (Version::Tls12, Cipher::ChaCha20Poly1305),
        (Version::Tls13, Cipher::Aes128Gcm),
        (Version::Tls13, Cipher::Aes256Gcm),
        (Version::Tls13, Cipher::ChaCha20Poly1305),
    ];

    fn pair(version: Version, cipher: Cipher) -> (Sealer, Opener) {
        let key = if cipher == Cipher::Aes128Gcm { &[7; 32][..16] } else { &[7; 32][..] };
        let secret = Secret::new(cipher, key, [9; 12]);
        (Sealer::new(version, 3, 1 << 24, &secret).unwrap(), Opener::new(version, 3, &secret).unwrap())
    }

    fn sealed(sealer: &mut Sealer, kind: ContentType, plain: &[u8]) -> Vec<u8> {
        let mut out = vec![0; sealer.sealed_bytes(plain.len())];
        assert_eq!(sealer.seal(kind, plain, &mut out).unwrap(), out.len());
        out
    }

    /// A TLS 1.3 record of any inner text, as no sealer of ours would write it.
    fn odd(inner: &[u8]) -> Vec<u8> {
        let keyed = pair(Version::Tls13, Cipher::Aes128Gcm).0.keyed;
        let [high, low] = short(inner.len() + TAG_BYTES);
        let header = [23, 3, 3, high, low];
        let mut sealed = inner.to_vec();
        let nonce = Nonce::assume_unique_for_key(keyed.nonce());
        keyed.key.seal_in_place_append_tag(nonce, keyed.associated(header, 0), &mut sealed).unwrap();
        [&header[..], &sealed].concat()
    }

    fn open_odd(record: &[u8]) -> Result<(ContentType, usize), TlsError> {
        let mut opener = pair(Version::Tls13, Cipher::Aes128Gcm).1;
        assert_eq!(opener.record_bytes(record)?, Some(record.len()));
        let mut out = vec![0; opener.room_bytes(record.len())?];
        opener.open(record, &mut out)
    }

    #[test]
    fn what_is_sealed_opens_to_the_same_in_every_suite_and_both_ways_of_sealing() {
        for (version, cipher) in ALL {
            let (mut sealer, mut opener) = pair(version, cipher);
            for bytes in [0, 1, 2, 13, 16, 1000, PLAIN_BYTES_MAX] {
                let plain: Vec<u8> = (0..bytes).map(|n| n as u8).collect();
                for in_place in [false, true] {
                    let mut record = vec![0; sealer.sealed_bytes(bytes)];
                    let len = if in_place {
                        let at = sealer.payload_at();
                        record[at..at + bytes].copy_from_slice(&plain);
                        sealer.seal_in_place(ContentType::ApplicationData, bytes, &mut record)
                    } else {
                        sealer.seal(ContentType::ApplicationData, &plain, &mut record)
                    };
                    assert_eq!(len, Ok(record.len()));
                    assert_eq!(opener.record_bytes(&record), Ok(Some(record.len())));
                    let mut out = vec![0; opener.room_bytes(record.len()).unwrap()];
                    assert_eq!(opener.open(&record, &mut out), Ok((ContentType::ApplicationData, bytes)));
                    assert!(out[..bytes] == plain, "{version:?} {cipher:?} {bytes}");
                }
            }
        }
    }

    #[test]
    fn every_bent_bit_is_seen_and_no_record_is_taken_twice_or_in_another_order() {
        for (version, cipher) in ALL {
            let (mut sealer, _) = pair(version, cipher);
            let first = sealed(&mut sealer, ContentType::ApplicationData, b"first");
            let second = sealed(&mut sealer, ContentType::ApplicationData, b"second");
            let mut out = [0; 64];
            for bit in 0..first.len() * 8 {
                // A bent length cuts the stream elsewhere; TLS 1.2 seals only the payload's.
                if version == Version::Tls12 && (24..40).contains(&bit) {
                    continue;
                }
                let mut bent = first.clone();
                bent[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(pair(version, cipher).1.open(&bent, &mut out), Err(TlsError::BadRecord), "{bit}");
            }
            let mut opener = pair(version, cipher).1;
            assert_eq!(opener.open(&second, &mut out), Err(TlsError::BadRecord));
            opener.open(&first, &mut out).unwrap();
            assert_eq!(opener.open(&first, &mut out), Err(TlsError::BadRecord));
            opener.open(&second, &mut out).unwrap();
        }
    }

    #[test]
    fn padding_is_taken_off_and_nothing_but_padding_is_refused() {
        let data = (ContentType::ApplicationData, 5);
        assert_eq!(open_odd(&odd(b"hello\x17")), Ok(data));
        assert_eq!(open_odd(&odd(b"hello\x17\0\0\0\0")), Ok(data));
        assert_eq!(open_odd(&odd(b"\x15\0")), Ok((ContentType::Alert, 0)));
        assert_eq!(open_odd(&odd(b"\0\0\0")), Err(TlsError::Unexpected("a record of no type")));
        assert_eq!(open_odd(&odd(b"")), Err(TlsError::Unexpected("a record of no type")));
    }

    #[test]
    fn a_record_longer_than_allowed_is_refused_by_its_header_or_once_it_is_open() {
        let mut full = vec![1; PLAIN_BYTES_MAX];
        full.push(23);
        assert_eq!(open_odd(&odd(&full)), Ok((ContentType::ApplicationData, PLAIN_BYTES_MAX)));
        full.push(0);
        assert_eq!(open_odd(&odd(&full)), Err(TlsError::TooLong));
        let opener = pair(Version::Tls13, Cipher::Aes128Gcm).1;
        assert_eq!(opener.record_bytes(&[23, 3, 3, 0x41, 0x00]), Ok(Some(5 + 16384 + 256)));
        assert_eq!(opener.record_bytes(&[23, 3, 3, 0x41, 0x01]), Err(TlsError::TooLong));
        let opener = pair(Version::Tls12, Cipher::Aes128Gcm).1;
        assert_eq!(opener.record_bytes(&[23, 3, 3, 0x48, 0x00]), Ok(Some(5 + 16384 + 2048)));
        assert_eq!(opener.record_bytes(&[23, 3, 3, 0x48, 0x01]), Err(TlsError::TooLong));
    }

    #[test]
    fn a_record_of_another_type_is_refused_by_its_first_bytes() {
        let opener = pair(Version::Tls13, Cipher::Aes128Gcm).1;
        for kind in [20, 21, 22, 24, 0, b'H'] {
            assert!(matches!(opener.record_bytes(&[kind, 3, 3, 0, 9]), Err(TlsError::Unexpected(_))));
        }
        assert_eq!(opener.record_bytes(&[23, 3, 3, 0]), Ok(None));
    }

    #[test]
    fn a_key_that_reached_its_limit_still_seals_an_alert_and_never_repeats_a_number() {
        let secret = Secret::new(Cipher::Aes128Gcm, &[0; 16], [0; 12]);
        let mut sealer = Sealer::new(Version::Tls13, 9, 10, &secret).unwrap();
        assert!(!sealer.is_spent());
        sealed(&mut sealer, ContentType::ApplicationData, b"the last");
        assert!(sealer.is_spent());
        sealed(&mut sealer, ContentType::Alert, &[2, 10]);
        let mut sealer = Sealer::new(Version::Tls13, u64::MAX - 2, u64::MAX, &secret).unwrap();
        assert_eq!(sealer.seal(ContentType::Alert, &[2, 10], &mut [0; 64]), Err(TlsError::UsedUp));
    }

    proptest! {
        #[test]
        fn any_bytes_open_to_an_error_and_never_panic(bytes: Vec<u8>, which in 0..6_usize) {
            let (version, cipher) = ALL[which];
            let mut opener = pair(version, cipher).1;
            let mut record = [&[23, 3, 3][..], &short(bytes.len()), &bytes].concat();
            prop_assert_eq!(opener.record_bytes(&record), Ok(Some(record.len())));
            let mut out = vec![0; record.len()];
            prop_assert_eq!(opener.open(&record, &mut out), Err(TlsError::BadRecord));
            record.truncate(bytes.len() % 5);
            prop_assert_eq!(opener.record_bytes(&record), Ok(None));
        }
    }
}
