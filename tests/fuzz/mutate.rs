//! Mutations of byte strings, drawn from a seed.

/// A splitmix64 generator: the same numbers from the same seed on every machine.
#[derive(Debug, Clone)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 if that is 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap().max(1);
        usize::try_from(self.next() % bound).unwrap()
    }

    pub(crate) fn one_of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    /// A place and a length within `input`: mostly short.
    fn range(&mut self, input: &[u8]) -> std::ops::Range<usize> {
        let start = self.below(input.len() + 1);
        let most = if self.below(4) == 0 { input.len() } else { 16 };
        start..start + self.below((input.len() - start).min(most) + 1)
    }
}

/// Where formats and arithmetic change their minds.
const NUMBERS: [u64; 20] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x100,
    1024,
    1025,
    4096,
    4097,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    999_999_999_999_999,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_ffff,
];

/// Bytes that mean something somewhere.
const BYTES: &[u8] = b"\x00\x01\x02\x7f\x80\x81\xfe\xff %/=?&\"\\{}[]():;,.-+*\r\n\t09azAZ";

/// Words of the texts that are read here.
const WORDS: &[&[u8]] = &[
    b"%00",
    b"%2F",
    b"%",
    b"%zz",
    b"%25",
    b"../",
    b"//",
    b"null",
    b"true",
    b"{}",
    b"[]",
    b"{\"a\":",
    b"\"",
    b"\\u0000",
    b"\\ud800",
    b"\xc3\x28",
    b"\xf0\x9f\x9b\x92",
    b"-1",
    b"-0",
    b"1e999",
    b"NaN",
    b"0.5",
    b"18446744073709551616",
    b"4294967296",
    b"00",
    b"\r\n",
    b"\r\n\r\n",
    b"\r\nHost: x\r\n",
    b"\r\nTransfer-Encoding: chunked\r\n",
    b"\r\nContent-Length: 0\r\n",
    b"W/\"",
    b"*",
    b", ",
    b"mac=:AAAAAAAAAAAAAAAAAAAAAA==:",
    b"node-a.1=(0 2)",
    b"quorum",
    b"all",
    b"0ms",
    b"60s",
    b"<!DOCTYPE x [<!ENTITY y \"zz\">]>",
    b"&y;",
    b"<Part>",
    b"]]>",
];

fn varint(mut value: u64, overlong: usize) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
    for _ in 0..overlong {
        *out.last_mut().unwrap() |= 0x80;
        out.push(0);
    }
    out
}

/// `input` after one to five changes, at most `longest` bytes. `other` is what parts are taken from.
pub(crate) fn mutate(rng: &mut Rng, input: &[u8], other: &[u8], longest: usize) -> Vec<u8> {
    let mut out = input.to_vec();
    let changes = [1, 1, 1, 2, 3, 5][rng.below(6)];
    for _ in 0..changes {
        change(rng, &mut out, other);
    }
    out.truncate(longest);
    out
}

fn change(rng: &mut Rng, out: &mut Vec<u8>, other: &[u8]) {
    match rng.below(14) {
        0 | 1 => {
            let (at, bit) = (rng.below(out.len()), rng.below(8));
            if let Some(byte) = out.get_mut(at) {
                *byte ^= 1 << bit;
            }
        }
        2 => {
            let (at, value) = (rng.below(out.len()), *rng.one_of(BYTES));
            if let Some(byte) = out.get_mut(at) {
                *byte = value;
            }
        }
        3 => out.truncate(rng.below(out.len() + 1)),
        4 => {
            let range = rng.range(out);
            let (copy, at) = (out[range].to_vec(), rng.below(out.len() + 1));
            let times = if rng.below(8) == 0 { rng.below(64) } else { 1 };
            let copies = copy.repeat(times);
            out.splice(at..at, copies.into_iter().take(4096));
        }
        5 => {
            // The beginning of one and the end of the other.
            let (head, tail) = (rng.below(out.len() + 1), rng.below(other.len() + 1));
            out.truncate(head);
            out.extend_from_slice(&other[tail..]);
        }
        6 => {
            let (from, to) = (rng.range(other), rng.range(out));
            out.splice(to, other[from].iter().copied());
        }
        7 | 8 => {
            // A varint in place of what may be one.
            let overlong = if rng.below(8) == 0 { 1 + rng.below(9) } else { 0 };
            let number = varint(boundary(rng), overlong);
            let at = rng.below(out.len() + 1);
            let end = (at + rng.below(3)).min(out.len());
            out.splice(at..end, number);
        }
        9 => {
            // A fixed-width number, little or big endian: lengths most of all.
            let number = boundary(rng);
            let width = *rng.one_of(&[4, 8, 16]);
            let mut bytes = [number.to_le_bytes(), [0; 8]].concat();
            bytes.truncate(width);
            if rng.below(4) == 0 {
                bytes.reverse();
            }
            let at = rng.below(out.len() + 1);
            let end = (at + width).min(out.len());
            out.splice(at..end, bytes);
        }
        10 => {
            let at = rng.below(out.len() + 1);
            let added: Vec<u8> = (0..=rng.below(8)).map(|_| rng.byte()).collect();
            out.splice(at..at, added);
        }
        11 => {
            let range = rng.range(out);
            out.drain(range);
        }
        12 => {
            let (at, word) = (rng.below(out.len() + 1), *rng.one_of(WORDS));
            let replaced = if rng.below(2) == 0 { 0 } else { word.len() };
            let end = (at + replaced).min(out.len());
            let times = if rng.below(16) == 0 { 300 } else { 1 };
            out.splice(at..end, word.repeat(times));
        }
        _ => another_number(rng, out),
    }
}

fn boundary(rng: &mut Rng) -> u64 {
    let number = *rng.one_of(&NUMBERS);
    match rng.below(4) {
        0 => number.wrapping_add(1),
        1 => number.wrapping_sub(1),
        _ => number,
    }
}

/// Another decimal number in place of one that stands in a text.
fn another_number(rng: &mut Rng, out: &mut Vec<u8>) {
    let from = rng.below(out.len());
    let Some(start) = (from..out.len()).find(|&at| out[at].is_ascii_digit()) else { return };
    let end = (start..out.len()).find(|&at| !out[at].is_ascii_digit()).unwrap_or(out.len());
    let number = boundary(rng).to_string().into_bytes();
    out.splice(start..end, number);
}
