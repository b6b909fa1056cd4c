//! What the machine did, for `--stats`: userspace exits by kind and vCPU, accesses that assigned devices trapped, start times.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use devices::virtio::blk::Counts;
use serde::Serialize;
use vfio::assigned::FunctionStats;

use crate::{machine::Refused, publish};

/// Kinds of exit to userspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitKind {
    /// Port read.
    IoIn,
    /// Port write.
    IoOut,
    /// Read of memory that is not mapped.
    MmioRead,
    /// Write to memory that is not mapped.
    MmioWrite,
    /// A kick of ours.
    Kick,
}

/// Exits of one vCPU. Only its thread writes, so relaxed order is enough; its own cache line, so that counting disturbs nobody.
#[derive(Default)]
#[repr(align(64))]
pub struct ExitCounters {
    by_kind: [AtomicU64; 5],
}

impl ExitCounters {
    /// One more.
    pub fn count(&self, kind: ExitKind) {
        if let Some(counter) = self.by_kind.get(kind as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The counts as they are.
    pub(crate) fn report(&self) -> Exits {
        let [io_in, io_out, mmio_read, mmio_write, kick] = self
            .by_kind
            .each_ref()
            .map(|counter| counter.load(Ordering::Relaxed));
        let total = io_in + io_out + mmio_read + mmio_write + kick;
        Exits {
            total,
            io_in,
            io_out,
            mmio_read,
            mmio_write,
            kick,
        }
    }
}

/// Userspace exits.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct Exits {
    /// All of them.
    pub total: u64,
    /// Port reads.
    pub io_in: u64,
    /// Port writes.
    pub io_out: u64,
    /// Reads of memory that is not mapped.
    pub mmio_read: u64,
    /// Writes to memory that is not mapped.
    pub mmio_write: u64,
    /// Kicks of ours.
    pub kick: u64,
}

impl std::ops::AddAssign for Exits {
    fn add_assign(&mut self, other: Self) {
        self.total += other.total;
        self.io_in += other.io_in;
        self.io_out += other.io_out;
        self.mmio_read += other.mmio_read;
        self.mmio_write += other.mmio_write;
        self.kick += other.kick;
    }
}

/// When the parts of a start were done, in milliseconds since the process began to build the machine.
#[derive(Debug, Clone)]
pub struct StartTimes {
    begun: Instant,
    /// What was done, and when.
    marks: Vec<(&'static str, u64)>,
}

impl StartTimes {
    /// The clock starts.
    pub fn begin() -> Self {
        Self {
            begun: Instant::now(),
            marks: Vec::new(),
        }
    }

    /// `part` is done now.
    pub fn mark(&mut self, part: &'static str) {
        self.marks.push((part, self.elapsed_ms()));
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// What one assigned device cost.
#[derive(Debug, Serialize)]
pub struct DeviceReport {
    /// Its address in the guest.
    pub slot: String,
    /// What the person calls it, if they do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What it counted.
    #[serde(flatten)]
    pub stats: FunctionStats,
    /// DMA of it that the IOMMU refused.
    pub refused_dma: Refused,
}

/// What a disk of ours was asked for.
#[derive(Debug, Serialize)]
pub struct DiskReport {
    /// Its address in the guest.
    pub slot: String,
    /// What it is kept in.
    pub path: PathBuf,
    /// The numbers.
    #[serde(flatten)]
    pub counts: Counts,
}

#[derive(Serialize)]
struct Report {
    uptime_ms: u64,
    start_ms: std::collections::BTreeMap<&'static str, u64>,
    resets: u64,
    exits: Exits,
    vcpus: Vec<Exits>,
    devices: Vec<DeviceReport>,
    disks: Vec<DiskReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    balloon_bytes: Option<u64>,
}

/// Writes the whole report to `path`, at once: a reader sees the old one or the new one.
pub fn write(
    path: &Path,
    start: &StartTimes,
    resets: u64,
    vcpus: &[Arc<ExitCounters>],
    devices: Vec<DeviceReport>,
    disks: Vec<DiskReport>,
    balloon_bytes: Option<u64>,
) -> io::Result<()> {
    let vcpus: Vec<Exits> = vcpus.iter().map(|counters| counters.report()).collect();
    let mut exits = Exits::default();
    vcpus.iter().for_each(|&vcpu| exits += vcpu);
    let start_ms = start.marks.iter().copied().collect();
    let report = Report {
        uptime_ms: start.elapsed_ms(),
        start_ms,
        resets,
        exits,
        vcpus,
        devices,
        disks,
        balloon_bytes,
    };
    let text = serde_json::to_vec_pretty(&report)?;
    publish::publish(path, false, |file| file.write_all(&text))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_report_sums_the_exits_of_all_vcpus() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats.json");
        let vcpus = [
            Arc::new(ExitCounters::default()),
            Arc::new(ExitCounters::default()),
        ];
        vcpus[0].count(ExitKind::IoOut);
        vcpus[1].count(ExitKind::IoOut);
        vcpus[1].count(ExitKind::MmioRead);
        let disk = DiskReport {
            slot: "06.0".into(),
            path: "a.img".into(),
            counts: Counts::default(),
        };
        write(
            &path,
            &StartTimes::begin(),
            0,
            &vcpus,
            Vec::new(),
            vec![disk],
            None,
        )
        .unwrap();
        let report: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(report["exits"]["total"], 3);
        assert_eq!(report["exits"]["io_out"], 2);
        assert_eq!(report["vcpus"][0]["total"], 1);
        assert_eq!(report["disks"][0]["slot"], "06.0");
    }
}
