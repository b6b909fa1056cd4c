//! What every guest finds besides processors, memory and cards: serial port, clock, power registers, pvpanic, the PCI root.

use std::{
    io::{self, Write},
    ops::Range,
    sync::Arc,
};

use arch::layout;
use devices::{
    bus::{Bus, BusDevice, BusError},
    fw_cfg::FwCfg,
    mapping::GuestRam,
    pci::{
        ports::ConfigPorts,
        root::{Ecam, PciRoot},
    },
    power::{EventRegister, KeyboardReset, ResetRegister, SleepRegisters},
    pvpanic::Pvpanic,
    rtc::Rtc,
    uart::Uart,
};

use crate::kvm::routes::{Line, Routes};

/// The platform cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    /// An interrupt line or the serial port could not be made.
    #[error("making {part}\n  it takes a few open files:  ulimit -n")]
    Part {
        /// Which.
        part: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Two parts claim one address: the layout is wrong.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// The emulated hardware and the buses that it is on.
pub struct Platform {
    /// I/O ports.
    pub io: Arc<Bus>,
    /// Memory outside RAM.
    pub memory: Arc<Bus>,
    /// COM1.
    pub uart: Arc<Uart>,
    /// Where functions go.
    pub root: Arc<PciRoot>,
}

impl Platform {
    /// Places everything where `arch::layout` says it is, as the ACPI tables tell the guest. COM1 prints to `serial`.
    pub fn assemble(routes: &Routes, serial: Box<dyn Write + Send>) -> Result<Self, PlatformError> {
        let com1 = line(routes, layout::COM1_GSI, "COM1's interrupt")?;
        let uart = Uart::new(com1, serial);
        let uart = Arc::new(uart.map_err(|source| PlatformError::Part {
            part: "COM1",
            source,
        })?);
        let events = EventRegister::new(line(
            routes,
            layout::GED_GSI,
            "the event device's interrupt",
        )?);
        let root = Arc::new(PciRoot::new());
        // The reset register is one byte of CONFIG_ADDRESS, which hands it on.
        let config_ports = ConfigPorts::new(root.clone(), Arc::new(ResetRegister::default()));
        let sleep = SleepRegisters::new(layout::SLEEP_TYPE_S5);
        let ports: [(Range<u16>, Arc<dyn BusDevice>); 7] = [
            (layout::KEYBOARD, Arc::new(KeyboardReset)),
            (layout::RTC, Arc::new(Rtc::new())),
            (layout::COM1, uart.clone()),
            (layout::PVPANIC, Arc::new(Pvpanic)),
            (layout::SLEEP_REGISTERS, Arc::new(sleep)),
            (layout::GED, Arc::new(events)),
            (layout::PCI_CONFIG, Arc::new(config_ports)),
        ];
        let io = Arc::new(Bus::new());
        for (range, device) in ports {
            io.insert(
                range.start.into(),
                u64::from(range.end - range.start),
                device,
            )?;
        }
        let memory = Arc::new(Bus::new());
        let ecam_len = layout::ECAM.end - layout::ECAM.start;
        memory.insert(
            layout::ECAM.start,
            ecam_len,
            Arc::new(Ecam::new(root.clone())),
        )?;
        Ok(Self {
            io,
            memory,
            uart,
            root,
        })
    }

    /// Adds the device by which a guest's kernel says what it is.
    pub fn add_fw_cfg(&self, ram: Arc<dyn GuestRam>) -> Result<Arc<FwCfg>, PlatformError> {
        let fw_cfg = Arc::new(FwCfg::new(ram));
        let ports = layout::FW_CFG;
        let len = u64::from(ports.end - ports.start);
        self.io.insert(ports.start.into(), len, fw_cfg.clone())?;
        Ok(fw_cfg)
    }
}

fn line(routes: &Routes, gsi: u32, part: &'static str) -> Result<Arc<Line>, PlatformError> {
    routes
        .line(gsi)
        .map(Arc::new)
        .map_err(|source| PlatformError::Part { part, source })
}
