//! The socket device whose packets somebody else carries.

use vm_memory::GuestMemoryMmap;

use super::{
    super::{Answer, Backend, Chain, Engine, Garbage, Kind},
    kind,
};

/// Sockets that keep packets apart (§5.10.3).
pub const F_SEQPACKET: u64 = 1 << 1;
/// The queue of events, which follows those of packets.
const EVENTS: usize = 2;

/// The socket device over an engine that serves its queues of packets.
pub struct Handed {
    kind: Kind,
    engine: Option<Box<dyn Engine>>,
}

impl Handed {
    /// For a guest whose number is `cid`. The engine knows of these features.
    pub fn new(cid: u32, features: u64, engine: Box<dyn Engine>) -> Self {
        Self {
            kind: kind(cid.into(), features),
            engine: Some(engine),
        }
    }
}

impl Backend for Handed {
    fn kind(&self) -> Kind {
        self.kind.clone()
    }

    fn agree(&mut self, _features: u64) {}

    /// There are no events: they are for migration.
    fn serve(
        &mut self,
        _queue: usize,
        _request: Chain,
        _memory: &GuestMemoryMmap,
    ) -> Result<Answer, Garbage> {
        Ok(Answer::NotYet)
    }

    fn engine(&mut self) -> Option<Box<dyn Engine>> {
        self.engine.take()
    }

    fn is_handed_over(&self, queue: usize) -> bool {
        queue < EVENTS
    }
}
