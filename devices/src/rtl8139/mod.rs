//! An emulated network card: Realtek's RTL8139C, which the oldest of guests have a driver for, on PCI with an interrupt pin.
//!
//! Each packet costs a few exits, and copies: it is there to be compared with, and for guests that know no other. Over the same wires as
//! virtio's network device.
//!
//! Left out: the chip's timer, wake on LAN, loopback, and the C+ mode, which revision 10h does not have.

mod chip;
mod eeprom;
mod registers;
mod station;

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use self::station::{Registers, Station};
use crate::{
    bus::Action,
    interrupt::IntxSource,
    mapping::GuestRam,
    pci::{
        Function,
        bar::{BarKind, BarSpec, Bars, REGISTERS},
        config::{ConfigSpace, Identity},
        registers::{
            COMMAND_INTX_DISABLE, COMMAND_IO, COMMAND_MASTER, COMMAND_MEMORY, INTERRUPT_LINE,
            INTERRUPT_PIN,
        },
        space::{PciSpace, Placements, Region},
    },
    virtio::net::{Offloads, Wire},
};

/// Revisions from 20h on are for another driver (rtl8139_init_one in 8139too.c).
const IDENTITY: Identity = Identity {
    vendor: 0x10ec,
    device: 0x8139,
    revision: 0x10,
    class: 0x02_00_00,
    subsystem_vendor: 0x10ec,
    subsystem: 0x8139,
};
const PIN: u8 = 1;
const LEN: u64 = registers::LEN as u64;
/// The same registers in both address spaces.
const BARS: [BarSpec; 2] = [
    BarSpec {
        index: 0,
        kind: BarKind::Io,
        size: LEN,
    },
    BarSpec {
        index: 1,
        kind: BarKind::Memory32 {
            prefetchable: false,
        },
        size: LEN,
    },
];

/// What of the machine the card is connected to.
pub struct Wiring<'a> {
    /// Where its BARs go.
    pub space: &'a PciSpace,
    /// Where its pin goes.
    pub intx: Arc<dyn IntxSource>,
    /// What it reads and writes.
    pub ram: Arc<dyn GuestRam>,
}

/// The card on the guest's bus. Dropping it stops it.
pub struct Rtl8139 {
    /// Taken before what the station has.
    state: Mutex<State>,
    station: Arc<Station>,
    intx: Arc<dyn IntxSource>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    config: ConfigSpace,
    bars: Bars,
    placements: Placements,
}

impl Rtl8139 {
    /// Called `name`, with an address, on the only queue of an interface.
    pub fn new(
        name: &str,
        address: [u8; 6],
        wire: Arc<dyn Wire>,
        wiring: &Wiring<'_>,
    ) -> io::Result<Arc<Self>> {
        // It knows neither checksums that are missing nor segments that are too long.
        wire.offload(Offloads::default())?;
        let station = Arc::new(Station::new(name, address, wire, wiring.ram.clone())?);
        let mut regions = [const { None }; REGISTERS];
        for spec in BARS {
            regions[spec.index] = Some(Region {
                len: LEN,
                device: Arc::new(Registers(station.clone())),
                direct: Vec::new(),
            });
        }
        let works = station.clone();
        let thread = thread::Builder::new().name(name.to_owned());
        let thread = Some(thread.spawn(move || works.run())?);
        let state = State {
            config: config(&*wiring.intx),
            bars: Bars::new(&BARS).map_err(io::Error::other)?,
            placements: Placements::new(wiring.space.clone(), regions),
        };
        Ok(Arc::new(Self {
            state: Mutex::new(state),
            station,
            intx: wiring.intx.clone(),
            thread,
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes true what the command register and the BARs say.
    fn place(&self, state: &mut State) {
        let command = state.config.command();
        self.station.allow(
            command & COMMAND_MASTER != 0,
            command & COMMAND_INTX_DISABLE == 0,
        );
        // Switched on the first time: by then the interrupt controllers are as this guest finds them.
        if command & (COMMAND_IO | COMMAND_MEMORY) != 0 {
            self.station.connect(|| self.intx.connect(PIN));
        }
        let wanted = state.bars.decoded(command);
        state.placements.reconcile(&wanted);
    }
}

fn config(intx: &dyn IntxSource) -> ConfigSpace {
    let mut config = ConfigSpace::new(&IDENTITY);
    config.registers().set(INTERRUPT_PIN, &[PIN]);
    config.registers().set(INTERRUPT_LINE, &[intx.line(PIN)]);
    config
}

impl Function for Rtl8139 {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        let state = self.state();
        match Bars::contains(offset) {
            true => state.bars.read(offset, data),
            false => state.config.read(offset, data),
        }
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> Action {
        let state = &mut *self.state();
        match Bars::contains(offset) {
            true => state.bars.write(offset, data),
            false => state.config.write(offset, data),
        }
        self.place(state);
        Action::None
    }

    fn bars(&self) -> Vec<BarSpec> {
        BARS.to_vec()
    }

    fn assign_bar(&self, index: usize, address: u64) {
        let state = &mut *self.state();
        state.bars.assign(index, address);
        self.place(state);
    }

    fn reset(&self) {
        let state = &mut *self.state();
        self.station.reset();
        state.config = config(&*self.intx);
        state.bars.reset();
        self.place(state);
    }
}

impl Drop for Rtl8139 {
    fn drop(&mut self) {
        self.station.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread of an emulated network card died");
        }
    }
}

#[cfg(test)]
mod tests;
