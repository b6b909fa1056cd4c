//! Answers of the INFO ioctls: a fixed part and a chain of capabilities (`struct vfio_info_cap_header`).
//!
//! Both are read as bytes with every offset checked, so a chain that leads out of the buffer or in a circle ends there.

use std::{io, os::fd::AsFd};

use super::ioctl::{self, Request};

/// More than any INFO answer: a guard against a kernel that asks for ever more.
const LARGEST_BYTES: usize = 1 << 20;
/// More than any chain: it may not loop for ever.
const LONGEST_CHAIN: usize = 64;
/// `struct vfio_info_cap_header`: id, version, next.
const CAP_HEADER_BYTES: usize = 8;

/// An INFO answer.
#[derive(Debug, Clone)]
pub(super) struct Info {
    bytes: Vec<u8>,
}

impl Info {
    /// Asks `fd`, with room for `fixed_bytes`, and asks again with more room if the kernel says that there are capabilities.
    /// `index` is which region is asked about, where that is part of the question.
    pub(super) fn fetch(
        fd: impl AsFd,
        request: Request,
        fixed_bytes: usize,
        index: Option<u32>,
    ) -> io::Result<Self> {
        let ask = |len: usize| {
            let mut bytes = vec![0; len];
            if let (Some(index), Some(field)) = (index, bytes.get_mut(8..12)) {
                field.copy_from_slice(&index.to_ne_bytes());
            }
            ioctl::with_bytes(fd.as_fd(), request, &mut bytes).map(|_| Self { bytes })
        };
        let answer = ask(fixed_bytes)?;
        let wanted = usize::try_from(answer.u32_at(0)).unwrap_or(usize::MAX);
        if wanted <= fixed_bytes || wanted > LARGEST_BYTES {
            return Ok(answer);
        }
        ask(wanted)
    }

    #[cfg(test)]
    pub(super) fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// The number at `offset`; 0, which the interface uses for "not there", past the end.
    pub(super) fn u32_at(&self, offset: usize) -> u32 {
        read_u32(&self.bytes, offset).unwrap_or(0)
    }

    /// The number at `offset`; 0 past the end.
    pub(super) fn u64_at(&self, offset: usize) -> u64 {
        read_u64(&self.bytes, offset).unwrap_or(0)
    }

    /// What follows the header of the first capability `id`, up to the end of the answer. `first` is where the chain starts.
    pub(super) fn capability(&self, first: u32, id: u32) -> Option<&[u8]> {
        let mut at = usize::try_from(first).ok()?;
        for _ in 0..LONGEST_CHAIN {
            if at < CAP_HEADER_BYTES {
                return None;
            }
            let body = self.bytes.get(at.checked_add(CAP_HEADER_BYTES)?..)?;
            let header = read_u32(&self.bytes, at)?;
            if header & 0xffff == id {
                return Some(body);
            }
            at = usize::try_from(read_u32(&self.bytes, at.checked_add(4)?)?).ok()?;
        }
        None
    }
}

pub(super) fn read_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    let field = bytes.get(offset..offset.checked_add(4)?)?;
    field.try_into().ok().map(u32::from_ne_bytes)
}

fn read_u64(bytes: &[u8], offset: usize) -> Option<u64> {
    let field = bytes.get(offset..offset.checked_add(8)?)?;
    field.try_into().ok().map(u64::from_ne_bytes)
}

/// The pairs of 64-bit numbers that follow a count and a reserved word: areas of a sparse mmap, IOVA ranges. As many as are there.
pub(super) fn pairs(body: &[u8]) -> Vec<(u64, u64)> {
    let count = read_u32(body, 0).and_then(|count| usize::try_from(count).ok());
    let list = body.get(8..).unwrap_or_default();
    list.chunks_exact(16)
        .take(count.unwrap_or(0))
        .filter_map(|pair| Some((read_u64(pair, 0)?, read_u64(pair, 8)?)))
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A capability: header and body.
    pub(in super::super) fn cap(id: u16, next: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = id.to_ne_bytes().to_vec();
        bytes.extend(1u16.to_ne_bytes());
        bytes.extend(next.to_ne_bytes());
        bytes.extend(body);
        bytes
    }

    /// The body of a capability that lists pairs.
    pub(in super::super) fn listing(count: u32, pairs: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = count.to_ne_bytes().to_vec();
        bytes.extend([0; 4]);
        for (a, b) in pairs {
            bytes.extend(a.to_ne_bytes());
            bytes.extend(b.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn a_capability_is_found_behind_another() {
        let mut bytes = vec![0; 16];
        bytes.extend(cap(7, 28, &[1, 2, 3, 4]));
        bytes.extend(cap(1, 0, &listing(1, &[(5, 6)])));
        let info = Info { bytes };
        assert_eq!(pairs(info.capability(16, 1).unwrap()), [(5, 6)]);
        assert!(info.capability(16, 2).is_none());
    }

    #[test]
    fn a_chain_that_loops_or_leaves_the_answer_ends() {
        let mut bytes = vec![0; 16];
        bytes.extend(cap(7, 16, &[]));
        let info = Info { bytes };
        assert!(info.capability(16, 1).is_none());
        assert!(info.capability(u32::MAX, 7).is_none());
        assert!(info.capability(20, 7).is_none());
        assert!(info.capability(0, 0).is_none());
    }

    #[test]
    fn a_list_is_no_longer_than_the_bytes_that_are_there() {
        let body = listing(u32::MAX, &[(1, 2), (3, 4)]);
        assert_eq!(pairs(&body), [(1, 2), (3, 4)]);
        assert_eq!(pairs(&body[..30]), [(1, 2)]);
        assert_eq!(pairs(&body[..7]), []);
        assert_eq!(pairs(&[]), []);
    }

    #[test]
    fn a_capability_of_garbage_is_what_follows_a_header_with_its_id() {
        // A linear congruential generator: the same bytes in every run.
        let mut state = 1u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as u32
        };
        let mut found = [0; 4];
        for _ in 0..20_000 {
            // Words that are IDs or links more often than anything else, and now and then part of
            // one at the end.
            let word = |_| match next() % 8 {
                0 => next(),
                1..4 => next() % 4,
                _ => next() % 32 * 4,
            };
            let mut bytes: Vec<u8> = (0..32).map(word).flat_map(u32::to_ne_bytes).collect();
            let len = (next() % 128) as usize;
            bytes.truncate(len);
            let info = Info {
                bytes: bytes.clone(),
            };
            let id_at = |at: usize| read_u32(&bytes, at).map(|header| header & 0xffff);
            for first in [next(), next() % 128] {
                for id in 0..4 {
                    let start = first as usize;
                    let body = info.capability(first, id);
                    if start >= CAP_HEADER_BYTES
                        && start + CAP_HEADER_BYTES <= len
                        && id_at(start) == Some(id)
                    {
                        assert_eq!(body, Some(&bytes[start + CAP_HEADER_BYTES..]));
                    }
                    let Some(body) = body else { continue };
                    assert!(bytes.ends_with(body));
                    let at = len - body.len() - CAP_HEADER_BYTES;
                    assert!(at >= CAP_HEADER_BYTES);
                    assert_eq!(id_at(at), Some(id));
                    assert!(pairs(body).len() * 16 <= body.len().saturating_sub(8));
                    found[id as usize] += usize::from(at != start);
                }
            }
        }
        assert!(found.iter().all(|&behind| behind > 10), "{found:?}");
    }
}
