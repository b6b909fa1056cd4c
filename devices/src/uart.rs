//! The serial port: a 16550A, modelled by `vm-superio`, between the bus, an interrupt line, and whoever sits at the console.
//!
//! vm-superio takes every character at once. Here the transmitter is as fast as its sink: while the backlog is full, the line status
//! says that the transmitter is busy, and its interrupt comes when it no longer is. So a guest waits for a paused terminal, as on a real
//! line with flow control, and its vCPU never does. Left out: baud rates, modem lines, receive errors.
//!
//! Lock order: the registers, then the backlog. The thread that writes never holds the backlog while it takes the registers.

use std::{
    fmt,
    io::{self, Write},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use vm_superio::{
    Serial, Trigger,
    serial::{Error, SerialEvents},
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::{
    bus::{Action, BusDevice},
    interrupt::IrqLine,
    output::Output,
};

/// How many ports.
pub const UART_LEN: u64 = 8;

const INTERRUPT_ENABLE: u8 = 1;
const LINE_CONTROL: u8 = 3;
const LINE_CONTROL_DIVISOR: u8 = 1 << 7;
const MODEM_CONTROL: u8 = 4;
const LINE_STATUS: u8 = 5;
const LINE_STATUS_EMPTY: u8 = 1 << 5 | 1 << 6;

type Registers = Serial<Line, Room, Transmitter>;

/// A serial port.
pub struct Uart {
    shared: Arc<Shared>,
    room: Arc<EventFd>,
    line: Arc<dyn IrqLine>,
}

struct Shared {
    registers: Mutex<Registers>,
    output: Arc<Output>,
}

impl Uart {
    /// A port that interrupts by `line` and transmits to `sink`, from a thread of its own: `sink` may block.
    pub fn new(line: Arc<dyn IrqLine>, sink: Box<dyn Write + Send>) -> io::Result<Self> {
        let room = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let output = Arc::new(Output::default());
        let shared = Arc::new(Shared {
            registers: Mutex::new(registers(&line, &room, &output)),
            output,
        });
        let writer = shared.clone();
        thread::Builder::new()
            .name("uart-output".to_owned())
            .spawn(move || {
                writer
                    .output
                    .drain("serial output", sink, || writer.has_room())
            })?;
        Ok(Self { shared, room, line })
    }

    /// Hands `input` to the guest. Answers how many bytes its FIFO took; for the others, come again when `room` is signalled.
    pub fn receive(&self, input: &[u8]) -> usize {
        let mut registers = self.shared.lock();
        let free = registers.fifo_capacity();
        let taken = match registers.enqueue_raw_bytes(input) {
            Ok(taken) => taken,
            Err(Error::Trigger(error)) => {
                // The bytes were in the FIFO before the line was pulsed.
                log::debug!("the serial port could not interrupt: {error}");
                free.min(input.len())
            }
            Err(Error::FullFifo | Error::IOError(_)) => 0,
        };
        if taken < input.len() {
            registers.events().refused.store(true, Ordering::Relaxed);
        }
        taken
    }

    /// Signalled when the guest has emptied its FIFO after `receive` could not hand it everything.
    pub fn room(&self) -> &EventFd {
        &self.room
    }

    /// The registers as at power-on. What was transmitted is still written.
    pub fn reset(&self) {
        let mut registers = self.shared.lock();
        registers.events().signal();
        *registers = self::registers(&self.line, &self.room, &self.shared.output);
    }

    /// Ends the output once the guest has stopped, and waits until it is written, `patience` at most.
    pub fn finish(&self, patience: Duration) {
        self.shared.output.finish(patience);
    }
}

impl Drop for Uart {
    fn drop(&mut self) {
        // The thread writes what is left and ends; whoever wants to wait for that has called `finish`.
        self.shared.output.finish(Duration::ZERO);
    }
}

impl fmt::Debug for Uart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uart").finish_non_exhaustive()
    }
}

fn registers(line: &Arc<dyn IrqLine>, room: &Arc<EventFd>, output: &Arc<Output>) -> Registers {
    let room = Room {
        refused: AtomicBool::new(false),
        event: room.clone(),
    };
    Serial::with_events(Line(line.clone()), room, Transmitter(output.clone()))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The transmitter is free again: interrupts a guest that waits for it. vm-superio raises the interrupt when it is enabled, and
    /// has no other way to be told.
    fn has_room(&self) {
        let mut registers = self.lock();
        // While the divisor latch is open that register is another. A guest that closes it enables its interrupts afterwards.
        if registers.read(LINE_CONTROL) & LINE_CONTROL_DIVISOR == 0 {
            let enabled = registers.read(INTERRUPT_ENABLE);
            write(&mut registers, INTERRUPT_ENABLE, enabled);
        }
    }

    fn read(&self, registers: &mut Registers, port: u8) -> u8 {
        let value = registers.read(port);
        if port == LINE_STATUS && self.output.is_full() {
            value & !LINE_STATUS_EMPTY
        } else {
            value
        }
    }
}

fn write(registers: &mut Registers, port: u8, value: u8) {
    if let Err(error) = registers.write(port, value) {
        log::debug!("the serial port could not interrupt: {error}");
    }
    if port == MODEM_CONTROL {
        // In loopback nothing is received; this may have been the end of it.
        registers.events().signal();
    }
}

impl BusDevice for Uart {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut registers = self.shared.lock();
        for (port, byte) in (offset..UART_LEN).zip(data) {
            *byte = u8::try_from(port).map_or(0xff, |port| self.shared.read(&mut registers, port));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let mut registers = self.shared.lock();
        for (port, &byte) in (offset..UART_LEN).zip(data) {
            if let Ok(port) = u8::try_from(port) {
                write(&mut registers, port, byte);
            }
        }
        Action::None
    }
}

struct Line(Arc<dyn IrqLine>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.pulse()
    }
}

struct Transmitter(Arc<Output>);

impl Write for Transmitter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        bytes.iter().for_each(|&byte| self.0.push(byte));
        Ok(bytes.len())
    }

    // Called for every byte: when to write is the thread's to decide.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Tells who feeds the port that there is room, if that is what they wait for.
struct Room {
    refused: AtomicBool,
    event: Arc<EventFd>,
}

impl Room {
    fn signal(&self) {
        if self.refused.swap(false, Ordering::Relaxed)
            && let Err(error) = self.event.write(1)
        {
            log::debug!("nobody was told that the serial port has room: {error}");
        }
    }
}

impl SerialEvents for Room {
    fn buffer_read(&self) {}

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        self.signal();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Condvar, atomic::AtomicUsize, mpsc},
        time::Instant,
    };

    use super::*;
    use crate::testing::{CountingLine, widths_agree};

    const DATA: u64 = 0;
    const DATA_READY: u8 = 1;
    const PATIENCE: Duration = Duration::from_secs(10);

    /// A sink that sends each write on, and holds writes up while its gate is shut.
    struct Sink {
        writes: mpsc::Sender<Vec<u8>>,
        gate: Arc<Gate>,
    }

    #[derive(Default)]
    struct Gate {
        shut: Mutex<bool>,
        opened: Condvar,
        waiting: AtomicBool,
    }

    impl Gate {
        fn shut(&self, shut: bool) {
            *self.shut.lock().unwrap() = shut;
            self.opened.notify_all();
        }
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let shut = self.gate.shut.lock().unwrap();
            self.gate.waiting.store(*shut, Ordering::SeqCst);
            drop(self.gate.opened.wait_while(shut, |shut| *shut).unwrap());
            self.writes
                .send(bytes.to_vec())
                .map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn uart() -> (Uart, Arc<CountingLine>, mpsc::Receiver<Vec<u8>>, Arc<Gate>) {
        let line = Arc::new(CountingLine::default());
        let (writes, written) = mpsc::channel();
        let gate = Arc::new(Gate::default());
        let sink = Sink {
            writes,
            gate: gate.clone(),
        };
        let uart = Uart::new(line.clone(), Box::new(sink)).unwrap();
        (uart, line, written, gate)
    }

    fn read(uart: &Uart, port: u64) -> u8 {
        let mut data = [0];
        uart.read(port, &mut data);
        data[0]
    }

    fn write(uart: &Uart, port: u64, value: u8) {
        assert_eq!(uart.write(port, &[value]), Action::None);
    }

    fn transmitter_is_empty(uart: &Uart) -> bool {
        read(uart, LINE_STATUS.into()) & LINE_STATUS_EMPTY == LINE_STATUS_EMPTY
    }

    fn fill(uart: &Uart) {
        while transmitter_is_empty(uart) {
            write(uart, DATA, b'x');
        }
    }

    #[test]
    fn a_prompt_without_a_newline_shows_in_few_writes() {
        let (uart, _, written, _) = uart();
        b"login: ".iter().for_each(|&byte| write(&uart, DATA, byte));
        let mut shown = Vec::new();
        let mut writes = 0;
        while shown.len() < 7 {
            shown.extend(written.recv_timeout(PATIENCE).unwrap());
            writes += 1;
        }
        assert_eq!(shown, b"login: ");
        assert!(writes < 7, "{writes} writes");
    }

    #[test]
    fn everything_is_written_before_finish_returns() {
        let (uart, _, written, _) = uart();
        let text: Vec<u8> = (0..50_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        text.iter().for_each(|&byte| write(&uart, DATA, byte));
        uart.finish(PATIENCE);
        assert_eq!(written.try_iter().flatten().collect::<Vec<_>>(), text);
    }

    #[test]
    fn a_stalled_sink_makes_the_transmitter_busy_and_loses_nothing() {
        let (uart, line, written, gate) = uart();
        gate.shut(true);
        write(&uart, INTERRUPT_ENABLE.into(), 0b10);
        write(&uart, DATA, b'x');
        while !gate.waiting.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        fill(&uart);
        assert!(!transmitter_is_empty(&uart));
        // The guest acknowledges its interrupt, finds no room, and waits for the next.
        read(&uart, 2);
        let before = line.pulses();
        gate.shut(false);
        while !transmitter_is_empty(&uart) || line.pulses() == before {
            thread::yield_now();
        }
        write(&uart, DATA, b'y');
        uart.finish(PATIENCE);
        let text: Vec<_> = written.try_iter().flatten().collect();
        assert!(text.len() > 64 << 10);
        assert_eq!(text.iter().filter(|&&byte| byte == b'y').count(), 1);
    }

    #[test]
    fn a_sink_that_never_recovers_does_not_hold_up_the_end() {
        let (uart, _, _written, gate) = uart();
        gate.shut(true);
        fill(&uart);
        let (start, patience) = (Instant::now(), Duration::from_millis(20));
        uart.finish(patience);
        assert!((patience..100 * patience).contains(&start.elapsed()));
    }

    struct Broken(Arc<AtomicUsize>);

    impl Write for Broken {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_broken_sink_is_tried_once_and_leaves_the_transmitter_empty() {
        let writes = Arc::new(AtomicUsize::new(0));
        let sink = Box::new(Broken(writes.clone()));
        let uart = Uart::new(Arc::new(CountingLine::default()), sink).unwrap();
        for _ in 0..1_000_000 {
            write(&uart, DATA, b'x');
        }
        uart.finish(PATIENCE);
        assert!(transmitter_is_empty(&uart));
        assert_eq!(writes.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn input_interrupts_and_is_read_in_order() {
        let (uart, line, _, _) = uart();
        write(&uart, INTERRUPT_ENABLE.into(), 0b01);
        assert_eq!(uart.receive(b"ls\n"), 3);
        assert_eq!(line.pulses(), 1);
        assert_eq!(read(&uart, 2) & 0x0f, 0b0100);
        assert_eq!([(); 3].map(|()| read(&uart, DATA)), *b"ls\n");
        assert_eq!(read(&uart, LINE_STATUS.into()) & DATA_READY, 0);
    }

    #[test]
    fn room_is_told_once_the_guest_has_read_what_it_had() {
        let (uart, ..) = uart();
        let taken = uart.receive(&[7; 100]);
        assert!(taken < 100);
        assert_eq!(uart.receive(&[7]), 0);
        for _ in 0..taken {
            assert!(uart.room().read().is_err(), "not yet");
            read(&uart, DATA);
        }
        assert_eq!(uart.room().read().unwrap(), 1);
        assert_eq!(uart.receive(&[7; 36]), 36);
    }

    #[test]
    fn input_refused_in_loopback_is_asked_for_afterwards() {
        let (uart, ..) = uart();
        write(&uart, MODEM_CONTROL.into(), 1 << 4);
        assert_eq!(uart.receive(b"x"), 0);
        write(&uart, MODEM_CONTROL.into(), 0);
        assert_eq!(uart.room().read().unwrap(), 1);
        assert_eq!(uart.receive(b"x"), 1);
    }

    #[test]
    fn reset_forgets_input_and_settings() {
        let (uart, ..) = uart();
        uart.receive(&[1; 100]);
        write(&uart, 7, 0xaa);
        uart.reset();
        assert_eq!(read(&uart, 7), 0);
        assert_eq!(read(&uart, LINE_STATUS.into()) & DATA_READY, 0);
        assert_eq!(uart.room().read().unwrap(), 1);
    }

    #[test]
    fn byte_word_and_dword_accesses_agree() {
        let write =
            |uart: &mut Uart, at, data: &[u8]| assert_eq!(uart.write(at, data), Action::None);
        let model = || Uart::new(Arc::new(CountingLine::default()), Box::new(io::sink())).unwrap();
        // Up to the modem registers: how full the backlog is depends on a thread.
        widths_agree(model, (0..4, 4), Uart::read, write, 100_000);
        widths_agree(model, (6..8, 2), Uart::read, write, 10_000);
    }
}
