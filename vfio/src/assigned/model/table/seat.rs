//! One of the cards, with its function and its model.

use std::{collections::HashMap, sync::Arc};

use devices::{interrupt::MsiMessage, pci::space::PciSpace};

use crate::{
    Assignable,
    assigned::{
        AssignedFunction, Options, Wiring,
        fake::{FakePins, FakeSource, Log},
        model::{hardware::Hardware, oracle::Oracle},
    },
    kernel::DmaTarget,
};

/// One of the cards.
pub(super) struct Seat {
    pub(super) function: Arc<AssignedFunction>,
    pub(super) oracle: Oracle,
    pub(super) source: FakeSource,
    routed: HashMap<usize, MsiMessage>,
}

impl Seat {
    pub(super) fn new(
        hardware: Hardware,
        space: &PciSpace,
        peers: &Arc<dyn DmaTarget>,
        log: &Log,
    ) -> Self {
        let (hardware, source) = (Arc::new(hardware), FakeSource::default());
        let wiring = Wiring {
            space,
            msi: &source,
            intx: Arc::new(FakePins(log.clone())),
            peers: Some(peers),
        };
        let name = Assignable::Function("03:10.3".parse().unwrap());
        let function = AssignedFunction::new(hardware.clone(), &name, &Options::default(), &wiring);
        let function = function.unwrap();
        hardware.take_seen();
        let oracle = Oracle::new(hardware, 11);
        Self {
            function,
            oracle,
            source,
            routed: HashMap::new(),
        }
    }

    pub(super) fn check(&mut self) {
        let hardware = &self.oracle.hardware;
        if let Some(command) = self.oracle.command_at_device() {
            // The INTx disable bit may be ours.
            assert_eq!(hardware.command() & !0x0400, command & !0x0400);
        }
        self.check_routes();
    }

    fn check_routes(&mut self) {
        // Those that changed, and a few of those that did not.
        let mut vectors = vec![0, 1, 2, 3];
        for (vector, message) in self.source.take_routes().into_iter().flatten() {
            vectors.push(vector);
            match message {
                Some(message) => self.routed.insert(vector, message),
                None => self.routed.remove(&vector),
            };
        }
        vectors.extend(self.routed.keys());
        let kind = self.oracle.kind_in_force();
        for vector in vectors {
            let expected = self.oracle.message(vector);
            assert_eq!(
                self.routed.get(&vector).copied(),
                expected,
                "vector {vector}"
            );
            let hardware = &self.oracle.hardware;
            let is_heard = kind.is_some_and(|kind| hardware.is_armed(kind, vector));
            assert!(
                expected.is_none() || is_heard || hardware.refused(),
                "vector {vector} has a route and is not armed"
            );
        }
    }
}
