//! DMA of the machine's devices that the IOMMU refused: told of, the less often the more there is, and counted for `--stats`.

use std::collections::BTreeMap;

use devices::pci::Bdf;
use serde::Serialize;
use vfio::host::DmaFault;

/// What was refused to one device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// How often, as far as the kernel told.
    pub count: u64,
    /// The address that it last tried.
    pub last_address: Option<u64>,
}

/// What was refused to whom.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    by_device: BTreeMap<Bdf, Refused>,
}

impl Refusals {
    /// Counts it, and tells the person of the first, the second, the fourth…
    pub(super) fn note(&mut self, faults: &[DmaFault]) {
        for fault in faults {
            if let Some(text) = self.count(fault) {
                log::warn!("{text}");
            }
        }
    }

    fn count(&mut self, fault: &DmaFault) -> Option<String> {
        let refused = self.by_device.entry(fault.device).or_default();
        refused.count += 1;
        refused.last_address = Some(fault.address);
        match refused.count {
            1 => Some(fault.to_string()),
            count if count.is_power_of_two() => Some(format!("{fault} (time {count})")),
            _ => None,
        }
    }

    pub(super) fn of(&self, device: Option<Bdf>) -> Refused {
        let refused = device.and_then(|device| self.by_device.get(&device));
        refused.cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use vfio::host::Access;

    use super::*;

    #[test]
    fn a_device_that_goes_wild_is_told_of_ever_less_often_and_counted_all_the_same() {
        let device: Bdf = "0000:00:05.0".parse().unwrap();
        let fault = |address| DmaFault {
            device,
            address,
            access: Some(Access::Write),
        };
        let mut refusals = Refusals::default();
        assert_eq!(
            refusals.count(&fault(0x40_0000_1000)).unwrap(),
            "0000:00:05.0: DMA write to 0x4000001000 refused by the IOMMU: nothing of the guest's is there for it"
        );
        let told: Vec<String> = (2..=1000)
            .filter_map(|n| refusals.count(&fault(n << 12)))
            .collect();
        assert_eq!(told.len(), 9);
        assert!(told[8].ends_with("(time 512)"));
        let refused = refusals.of(Some(device));
        assert_eq!(
            (refused.count, refused.last_address),
            (1000, Some(1000 << 12))
        );
        assert_eq!(refusals.of(None), Refused::default());
    }
}
