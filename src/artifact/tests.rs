//! Tests by claim: what was sealed opens, and every corruption has its own error.

use std::io::{self, Read};

use proptest::prelude::*;
use ring::digest::{SHA256, digest};

use super::key::decode_hex;
use super::seal::seal_all;
use super::*;
use crate::model::Compression;

const FULL: usize = HEAD_BYTES + FRAME_BYTES + TAG_BYTES;

fn key() -> DataKey {
    DataKey::from_bytes(&(0..32).collect::<Vec<u8>>()).unwrap()
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect()
}

fn open(artifact: &[u8]) -> Result<Vec<u8>, OpenError> {
    let mut opener = Opener::new(artifact, &key()).unwrap();
    let mut plain = Vec::new();
    match opener.read_to_end(&mut plain) {
        Ok(_) => {
            assert_eq!(opener.failure(), None);
            Ok(plain)
        }
        Err(_) => {
            let failure = opener.failure().unwrap();
            // The error stays: nobody can read on past it and take the rest for an artifact.
            assert!(opener.read(&mut [0; 8]).is_err());
            Err(failure)
        }
    }
}

fn undo(artifact: &[u8], options: Options) -> Result<(Vec<u8>, Decrypted), DecryptError> {
    let mut out = Vec::new();
    decrypt(artifact, Some(&key()), &mut out, options).map(|done| (out, done))
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().unwrap()
}

#[test]
fn known_answer_opens() {
    let fixture = include_str!("../../tests/fixtures/artifact_v1.hex");
    let artifact = decode_hex(fixture.trim().as_bytes()).unwrap();
    let expected_sha256 = Some(sha256(&artifact));
    let (dump, done) = undo(&artifact, Options { expected_sha256, ..Options::default() }).unwrap();
    let expected = [b"SQLite format 3\0".to_vec(), b"known answer ".repeat(40)].concat();
    assert_eq!(dump, expected);
    assert_eq!(done.compression, Compression::Zstd);
    assert_eq!(done.bytes_in, artifact.len() as u64);
    assert_eq!(done.bytes_out, expected.len() as u64);
}

#[test]
fn known_answer_seals() {
    let sealer = Sealer::new(&key()).unwrap();
    let mut artifact = Vec::new();
    for (chunk, number) in pattern((2 << 20) + 5).chunks(FRAME_BYTES).zip(1..) {
        let mut frame = [&[0; HEAD_BYTES], chunk].concat();
        sealer.seal_with(&mut frame, [number; 12]).unwrap();
        artifact.extend_from_slice(&frame);
    }
    artifact.extend_from_slice(&END_MARKER);
    assert_eq!(crate::hex::hex(&sha256(&artifact)), LARGE_SHA256);
}

/// From tests/fixtures/artifact_v1.py.
const LARGE_SHA256: &str = "355a6f2b6421052ae83fc337ae5076a6a2de98807bdcdf91eba94b21dcaa927d";

#[test]
fn sizes_around_the_frame_boundary() {
    for length in [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 2 * FRAME_BYTES] {
        let artifact = seal_all(&key(), &pattern(length));
        assert!(open(&artifact).unwrap() == pattern(length), "{length}");
        let frames = length.div_ceil(FRAME_BYTES);
        assert_eq!(artifact.len(), length + frames * 32 + 4);
    }
    assert_eq!(seal_all(&key(), b""), END_MARKER);
}

#[test]
fn nonces_are_fresh() {
    assert_ne!(seal_all(&key(), b"same"), seal_all(&key(), b"same"));
}

#[test]
fn a_sealer_refuses_what_a_reader_would() {
    let frame = |length| vec![0; HEAD_BYTES + length];
    let mut sealer = Sealer::new(&key()).unwrap();
    assert_eq!(sealer.seal(&mut frame(0)), Err(SealError::Length(0)));
    assert_eq!(sealer.seal(&mut frame(FRAME_BYTES + 1)), Err(SealError::Length(FRAME_BYTES + 1)));
    assert_eq!(sealer.seal(&mut Vec::new()), Err(SealError::Length(0)));
    sealer.seal(&mut frame(FRAME_BYTES)).unwrap();
    sealer.seal(&mut frame(9)).unwrap();
    assert_eq!(sealer.seal(&mut frame(9)), Err(SealError::AfterShort));
}

#[test]
fn sealing_does_not_reallocate() {
    let mut frame = Vec::with_capacity(seal::SEALED_CAPACITY);
    frame.resize(HEAD_BYTES + FRAME_BYTES, 1);
    let before = frame.as_ptr();
    Sealer::new(&key()).unwrap().seal(&mut frame).unwrap();
    assert_eq!(frame.as_ptr(), before);
}

#[test]
fn truncation_is_refused_wherever_it_is() {
    let artifact = seal_all(&key(), &pattern(FRAME_BYTES + 100));
    let last = artifact.len();
    for cut in [0, 1, 3, 4, 20, FULL - 1] {
        assert_eq!(open(&artifact[..cut]), Err(OpenError::Truncated { frames: 0 }), "{cut}");
    }
    for cut in [FULL, FULL + 3, FULL + 4, last - 5] {
        assert_eq!(open(&artifact[..cut]), Err(OpenError::Truncated { frames: 1 }), "{cut}");
    }
    for cut in last - 4..last {
        assert_eq!(open(&artifact[..cut]), Err(OpenError::Truncated { frames: 2 }), "{cut}");
    }
}

#[test]
fn a_flipped_bit_is_refused_wherever_it_is() {
    let artifact = seal_all(&key(), b"some plaintext");
    for position in 0..artifact.len() {
        for bit in 0..8 {
            let mut bad = artifact.clone();
            bad[position] ^= 1 << bit;
            assert!(open(&bad).is_err(), "byte {position} bit {bit}");
        }
    }
}

#[test]
fn wrong_key() {
    let artifact = seal_all(&DataKey::from_bytes(&[9; 32]).unwrap(), b"x");
    assert_eq!(open(&artifact), Err(OpenError::NotAuthentic { frame: 1 }));
}

#[test]
fn a_damaged_second_frame_is_named() {
    let mut artifact = seal_all(&key(), &pattern(FRAME_BYTES + 100));
    artifact[FULL + 30] ^= 1;
    assert_eq!(open(&artifact), Err(OpenError::NotAuthentic { frame: 2 }));
}

#[test]
fn impossible_lengths() {
    for length in [1, 27, 1_048_605, u32::MAX] {
        let mut artifact = length.to_be_bytes().to_vec();
        artifact.resize(2 << 20, 0);
        assert_eq!(open(&artifact), Err(OpenError::FrameLength { frame: 1, length }));
    }
    let mut artifact = seal_all(&key(), b"x");
    artifact.truncate(artifact.len() - 4);
    artifact.extend_from_slice(b"junk");
    let length = u32::from_be_bytes(*b"junk");
    assert_eq!(open(&artifact), Err(OpenError::FrameLength { frame: 2, length }));
}

#[test]
fn a_huge_length_allocates_nothing() {
    // The input never ends: a reader that believed the length would fill memory.
    let endless = io::Cursor::new(u32::MAX.to_be_bytes()).chain(io::repeat(0));
    let mut opener = Opener::new(endless, &key()).unwrap();
    assert!(opener.read(&mut [0; 1]).is_err());
}

#[test]
fn short_frames_inside() {
    let one = seal_all(&key(), b"short");
    let joined = [&one[..one.len() - 4], &one].concat();
    assert_eq!(open(&joined), Err(OpenError::ShortFrameInside { frame: 1 }));
}

#[test]
fn bytes_after_the_end() {
    for extra in [&b"\0"[..], b"\0\0\0\0", b"more"] {
        let artifact = [seal_all(&key(), b"x").as_slice(), extra].concat();
        assert_eq!(open(&artifact), Err(OpenError::BytesAfterEnd));
    }
    let twice = seal_all(&key(), b"x").repeat(2);
    assert_eq!(open(&twice), Err(OpenError::BytesAfterEnd));
}

#[test]
fn reordered_full_frames_are_caught_by_the_hash() {
    let artifact = seal_all(&key(), &pattern(2 * FRAME_BYTES));
    let swapped = [&artifact[FULL..2 * FULL], &artifact[..FULL], &END_MARKER].concat();
    assert!(open(&swapped).is_ok());
    let expected_sha256 = Some(sha256(&artifact));
    let options = Options { expected_sha256, ..Options::default() };
    assert!(undo(&artifact, options).is_ok());
    let error = undo(&swapped, options).unwrap_err();
    assert!(matches!(error, DecryptError::Sha256 { .. }), "{error}");
    assert!(error.to_string().contains(&crate::hex::hex(&sha256(&artifact))));
}

#[test]
fn input_errors_are_passed_on() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("cable"))
        }
    }
    for inside in [noise_packed(), b"plain".to_vec()] {
        let artifact = seal_all(&key(), &inside);
        let cut = artifact.len() - 9;
        for (bytes, key) in [(&artifact[..cut], Some(key())), (&inside[..inside.len() - 2], None)] {
            let mut out = io::sink();
            let result = decrypt(bytes.chain(Broken), key.as_ref(), &mut out, Options::default());
            let error = result.unwrap_err();
            assert!(matches!(error, DecryptError::Input(_)), "{error}");
            assert!(error.retry() && error.to_string().contains("cable"));
        }
    }
}

/// More than a frame after compression, so that the first frame is read within the decompressor.
fn noise_packed() -> Vec<u8> {
    let mut state = 1u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        u8::try_from(state >> 56).unwrap()
    });
    zstd(&noise.take(2 * FRAME_BYTES).collect::<Vec<_>>())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::read::GzEncoder::new(bytes, flate2::Compression::fast());
    let mut out = Vec::new();
    encoder.read_to_end(&mut out).unwrap();
    out
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

#[test]
fn compression_is_found_by_itself() {
    // No dump starts with a zero byte, and a sealed artifact always does.
    let dump = pattern(3 << 20).split_off(1);
    let joined = |pack: fn(&[u8]) -> Vec<u8>| [pack(&dump[..999]), pack(&dump[999..])].concat();
    for (inside, compression) in [
        (zstd(&dump), Compression::Zstd),
        (joined(zstd), Compression::Zstd),
        (gzip(&dump), Compression::Gzip),
        (joined(gzip), Compression::Gzip),
        (dump.clone(), Compression::None),
    ] {
        let artifact = seal_all(&key(), &inside);
        let (out, done) = undo(&artifact, Options::default()).unwrap();
        assert!(out == dump && done.compression == compression, "{compression:?}");
        assert_eq!(done.bytes_out, dump.len() as u64);
        let options = Options { skip_decompress: true, ..Options::default() };
        let (out, done) = undo(&artifact, options).unwrap();
        assert!(out == inside && done.compression == compression, "{compression:?}");
        // The same, stored without encryption.
        let mut out = Vec::new();
        let done = decrypt(inside.as_slice(), None, &mut out, Options::default()).unwrap();
        assert!(out == dump && done.compression == compression, "{compression:?}");
    }
}

#[test]
fn an_empty_dump() {
    for inside in [zstd(b""), gzip(b""), Vec::new()] {
        let (out, _) = undo(&seal_all(&key(), &inside), Options::default()).unwrap();
        assert_eq!(out, b"");
    }
}

#[test]
fn cut_or_followed_compressed_streams_are_refused() {
    let dump = pattern(100_000);
    for pack in [zstd, gzip] {
        let packed = pack(&dump);
        let bad = [
            packed[..packed.len() - 1].to_vec(),
            packed[..packed.len() / 2].to_vec(),
            [packed.as_slice(), b"trailing"].concat(),
            [packed.as_slice(), b"x"].concat(),
        ];
        for inside in bad {
            let error = undo(&seal_all(&key(), &inside), Options::default()).unwrap_err();
            assert!(matches!(error, DecryptError::Decompress { .. }), "{error}");
        }
    }
}

#[test]
fn damage_behind_the_compressed_stream_is_still_found() {
    let packed = zstd(&pattern(1000));
    let mut artifact = seal_all(&key(), &packed);
    artifact.push(0);
    let error = undo(&artifact, Options::default()).unwrap_err();
    assert!(matches!(error, DecryptError::Open(OpenError::BytesAfterEnd)), "{error}");
    let artifact = &artifact[..artifact.len() - 3];
    let error = undo(artifact, Options::default()).unwrap_err();
    assert!(matches!(error, DecryptError::Open(OpenError::Truncated { frames: 1 })), "{error}");
}

#[test]
fn a_greedy_zstd_window_is_refused() {
    // Magic, a frame header with a window of 2 GiB (exponent 21), one raw last block of one byte.
    let greedy = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x09, 0x00, 0x00, b'x'];
    let modest = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 17 << 3, 0x09, 0x00, 0x00, b'x'];
    let (out, _) = undo(&seal_all(&key(), &modest), Options::default()).unwrap();
    assert_eq!(out, b"x");
    let error = undo(&seal_all(&key(), &greedy), Options::default()).unwrap_err();
    assert!(matches!(error, DecryptError::Decompress { .. }), "{error}");
}

#[test]
fn a_missing_key_and_a_needless_one_are_told() {
    let artifact = seal_all(&key(), b"x");
    for sealed in [artifact.as_slice(), &END_MARKER] {
        let error = decrypt(sealed, None, &mut io::sink(), Options::default()).unwrap_err();
        assert!(matches!(error, DecryptError::KeyNeeded), "{error}");
    }
    let error = undo(&zstd(b"plain"), Options::default()).unwrap_err();
    assert!(error.to_string().contains("not an encrypted artifact"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_sealed_opens(plain in prop::collection::vec(any::<u8>(), 0..5000), step in 1usize..700) {
        let artifact = seal_all(&key(), &plain);
        let mut opener = Opener::new(Stuttering(&artifact, step), &key()).unwrap();
        let mut out = Vec::new();
        opener.read_to_end(&mut out).unwrap();
        prop_assert_eq!(out, plain);
    }

    #[test]
    fn garbage_never_opens(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
        prop_assume!(bytes != END_MARKER);
        prop_assert!(open(&bytes).is_err());
    }

    #[test]
    fn any_cut_is_refused(plain in prop::collection::vec(any::<u8>(), 0..3000), cut in any::<prop::sample::Index>()) {
        let artifact = seal_all(&key(), &plain);
        let at = cut.index(artifact.len());
        prop_assert!(matches!(open(&artifact[..at]), Err(OpenError::Truncated { .. })), "cut at {}", at);
    }

    #[test]
    fn tokens_of_garbage_are_refused(text in ".{0,200}") {
        prop_assert!(Token::parse(&text, 0).is_err());
    }
}

/// Gives at most `.1` bytes at a time.
struct Stuttering<'a>(&'a [u8], usize);

impl Read for Stuttering<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.1.min(out.len());
        self.0.read(&mut out[..count])
    }
}
