//! What other devices reach of the function, and when.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::{
    host::limits,
    kernel::{DmaError, Interface},
};

/// An IOMMU that writes down what is mapped in it.
struct FakeDma {
    refuses: AtomicBool,
    calls: Log,
}

impl DmaTarget for FakeDma {
    fn map(&self, iova: u64, memory: Arc<dyn HostMapping>) -> Result<(), DmaError> {
        let len = memory.len() as u64;
        if self.refuses.load(Ordering::Relaxed) {
            return Err(DmaError {
                iova,
                len,
                interface: Interface::Iommufd,
                locked: limits::locked(),
                reserved: None,
                source: io::Error::from_raw_os_error(libc::EFAULT),
            });
        }
        let call = format!("dma map {iova:#x} {len:#x}");
        self.calls.lock().unwrap().push(call);
        Ok(())
    }

    fn unmap(&self, iova: u64) {
        let call = format!("dma unmap {iova:#x}");
        self.calls.lock().unwrap().push(call);
    }
}

fn guest_with_peers() -> (Guest, Arc<FakeDma>) {
    let host = card();
    let dma = Arc::new(FakeDma {
        refuses: AtomicBool::new(false),
        calls: host.log(),
    });
    let peers: Arc<dyn DmaTarget> = dma.clone();
    let guest = Guest::with(host, &Options::default(), Some(&peers)).unwrap();
    (guest, dma)
}

/// Of BAR 0, which is one part.
fn of_bar_0(calls: &[String]) -> Vec<&str> {
    let calls = calls.iter().map(String::as_str);
    calls
        .filter(|call| call.contains("map 0x8") && !call.contains("map 0x8001"))
        .collect()
}

#[test]
fn peers_reach_what_the_guest_reaches_and_lose_it_first() {
    let (guest, _) = guest_with_peers();
    let calls = guest.write(COMMAND, &[2, 0]);
    assert_eq!(
        of_bar_0(&calls),
        ["map 0x80000000 0x4000", "dma map 0x80000000 0x4000"]
    );
    // BAR 3 without the pages of the MSI-X table and the pending bits.
    assert_eq!(guest.function.stats().peer_mappings, 3);
    let calls = guest.write(0x10, &0x8100_0000u32.to_le_bytes());
    assert_eq!(
        calls,
        [
            "dma unmap 0x80000000",
            "unmap 0x80000000",
            "map 0x81000000 0x4000",
            "dma map 0x81000000 0x4000",
        ]
    );
    let calls = guest.write(COMMAND, &[0, 0]);
    assert_eq!(
        of_bar_0(&calls),
        ["dma unmap 0x81000000", "unmap 0x81000000"]
    );
    assert_eq!(guest.function.stats().peer_mappings, 0);
}

#[test]
fn a_bar_that_peers_cannot_reach_is_the_guests_all_the_same() {
    let (guest, dma) = guest_with_peers();
    dma.refuses.store(true, Ordering::Relaxed);
    let calls = guest.write(COMMAND, &[2, 0]);
    assert_eq!(of_bar_0(&calls), ["map 0x80000000 0x4000"]);
    let stats = guest.function.stats();
    assert_eq!((stats.peer_mappings, stats.peer_mappings_refused), (0, 3));
    let calls = guest.write(COMMAND, &[0, 0]);
    assert_eq!(of_bar_0(&calls), ["unmap 0x80000000"]);
}
