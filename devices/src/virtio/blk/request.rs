//! What a driver asks of a disk (virtio 1.2 §5.2.6).

use std::io;

use vm_memory::GuestMemoryMmap;

use super::super::{Chain, Garbage};

/// Length of the header in bytes: type, something reserved, sector.
pub(super) const HEADER_LEN: usize = 16;

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const RANGE_LEN: usize = 16;
const RANGE_UNMAP: u32 = 1;

/// A header that makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// Fill the writable buffers.
    Read { sector: u64 },
    /// Store the readable ones.
    Write { sector: u64 },
    /// Have what was written survive.
    Flush,
    /// Say the disk's name.
    Identify,
    /// Forget the ranges in the readable buffers.
    Discard,
    /// Make them read as zeroes.
    WriteZeroes,
}

impl Request {
    /// Reads a header; `None` for what no request here is.
    pub(super) fn parse(header: [u8; HEADER_LEN]) -> Option<Self> {
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([a, b, c, d]) {
            READ => Some(Self::Read { sector }),
            WRITE => Some(Self::Write { sector }),
            FLUSH => Some(Self::Flush),
            GET_ID => Some(Self::Identify),
            DISCARD => Some(Self::Discard),
            WRITE_ZEROES => Some(Self::WriteZeroes),
            _ => None,
        }
    }
}

/// How a request ended, as the driver is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// A request could not be performed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    /// The disk cannot do that, or not so.
    #[error("not supported")]
    Unsupported,
    /// What is asked for is outside of the disk, or no whole sectors, or nothing at all.
    #[error("no such sectors")]
    Request,
    /// The host's file cannot.
    #[error("{doing}")]
    Host {
        /// What was tried.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Sectors to be discarded or zeroed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) sector: u64,
    sectors: u32,
    pub(super) may_unmap: bool,
}

impl Range {
    /// How many sectors, if that is no more than was offered.
    pub(super) fn checked(&self, most: u32) -> Result<u64, Failed> {
        match self.sectors <= most {
            true => Ok(self.sectors.into()),
            false => Err(Failed::Request),
        }
    }
}

/// The ranges in the readable buffers, `most` of them.
pub(super) fn ranges(
    chain: &mut Chain,
    memory: &GuestMemoryMmap,
    most: u32,
) -> Result<Vec<Range>, Failed> {
    let mut ranges = Vec::new();
    for _ in 0..most {
        if chain.readable.is_empty() {
            return Ok(ranges);
        }
        ranges.push(range(chain, memory)?);
    }
    match chain.readable.is_empty() {
        true => Ok(ranges),
        false => Err(Failed::Request),
    }
}

fn range(chain: &mut Chain, memory: &GuestMemoryMmap) -> Result<Range, Failed> {
    let bytes: [u8; RANGE_LEN] = chain
        .take_header(memory)
        .map_err(|_: Garbage| Failed::Request)?;
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = bytes;
    let flags = u32::from_le_bytes(flags);
    // §5.2.6.2: a flag that nobody knows is not supported.
    match flags & !RANGE_UNMAP {
        0 => Ok(Range {
            sector: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            sectors: u32::from_le_bytes([n0, n1, n2, n3]),
            may_unmap: flags & RANGE_UNMAP != 0,
        }),
        _ => Err(Failed::Unsupported),
    }
}
