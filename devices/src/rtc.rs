//! The CMOS clock: a Motorola MC146818 and its RAM behind ports 0x70 (index) and 0x71 (data), with a century register at 0x32.
//!
//! The time is the host's, in UTC. Left out: setting it (the host keeps it; a guest's writes are ignored), 12-hour mode, and all
//! interrupts; the update-in-progress bit is never set, since each read of a register is a moment of its own.

use std::{
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::bus::{Action, BusDevice};

/// How many ports: index, then data.
pub const RTC_LEN: u64 = 2;

const INDEX: u64 = 0;
const DATA: u64 = 1;

// The top bit of the index port gates NMIs on the board and is no part of the index.
const INDEX_BITS: u8 = 0x7f;

const SECONDS: usize = 0x00;
const MINUTES: usize = 0x02;
const HOURS: usize = 0x04;
const DAY_OF_WEEK: usize = 0x06;
const DAY: usize = 0x07;
const MONTH: usize = 0x08;
const YEAR: usize = 0x09;
const STATUS_A: usize = 0x0a;
const STATUS_B: usize = 0x0b;
const STATUS_C: usize = 0x0c;
const STATUS_D: usize = 0x0d;
const CENTURY: usize = 0x32;

/// A 32.768 kHz time base, periodic rate 1024 Hz: what every BIOS leaves there.
const STATUS_A_POWER_ON: u8 = 0x26;
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
const HOURS_24: u8 = 1 << 1;
const BINARY: u8 = 1 << 2;
/// Time and RAM are valid: the battery is good.
const VALID: u8 = 1 << 7;

/// A source of the time; the host's clock but for tests.
type Clock = Box<dyn Fn() -> SystemTime + Send + Sync>;

/// The clock and its RAM.
pub struct Rtc {
    clock: Clock,
    state: Mutex<State>,
}

struct State {
    index: u8,
    ram: [u8; 128],
}

impl Default for Rtc {
    fn default() -> Self {
        Self::new()
    }
}

impl Rtc {
    /// Runs by the host's clock.
    pub fn new() -> Self {
        Self::with_clock(Box::new(SystemTime::now))
    }

    fn with_clock(clock: Clock) -> Self {
        let mut ram = [0; 128];
        ram[STATUS_A] = STATUS_A_POWER_ON;
        ram[STATUS_B] = HOURS_24;
        let state = Mutex::new(State { index: 0, ram });
        Self { clock, state }
    }

    fn read_register(&self, state: &State) -> u8 {
        let register = usize::from(state.index);
        let time = || Time::of((self.clock)());
        let number = match register {
            SECONDS => time().second,
            MINUTES => time().minute,
            HOURS => time().hour,
            DAY_OF_WEEK => time().day_of_week,
            DAY => time().day,
            MONTH => time().month,
            YEAR => time().year_of_century,
            CENTURY => time().century,
            STATUS_C => return 0,
            STATUS_D => return VALID,
            _ => return state.ram[register],
        };
        if state.ram[STATUS_B] & BINARY != 0 {
            number
        } else {
            // Below 100, so the two digits do not meet.
            16 * (number / 10) + number % 10
        }
    }
}

impl State {
    fn write_register(&mut self, value: u8) {
        let register = usize::from(self.index);
        self.ram[register] = match register {
            STATUS_A => value & !UPDATE_IN_PROGRESS,
            STATUS_B => value | HOURS_24,
            // Reads of the time, of C and of D never look here: a write to them is lost.
            _ => value,
        };
    }
}

impl BusDevice for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for (port, byte) in (offset..).zip(data) {
            // The index is write-only.
            *byte = if port == DATA {
                self.read_register(&state)
            } else {
                0xff
            };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for (port, &byte) in (offset..).zip(data) {
            match port {
                INDEX => state.index = byte & INDEX_BITS,
                DATA => state.write_register(byte),
                _ => {}
            }
        }
        Action::None
    }
}

/// A moment as the registers say it, in UTC.
#[derive(Debug, PartialEq, Eq)]
struct Time {
    second: u8,
    minute: u8,
    hour: u8,
    /// 1 is Sunday.
    day_of_week: u8,
    /// From 1.
    day: u8,
    /// From 1.
    month: u8,
    year_of_century: u8,
    /// 20 in the year 2026.
    century: u8,
}

impl Time {
    fn of(moment: SystemTime) -> Self {
        let since_epoch = moment
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let (days, seconds) = (since_epoch / 86400, since_epoch % 86400);
        let (year, month, day) = date(days);
        Self {
            second: small(seconds % 60),
            minute: small(seconds / 60 % 60),
            hour: small(seconds / 3600),
            // 1 January 1970 was a Thursday.
            day_of_week: small((days + 4) % 7 + 1),
            day: small(day),
            month: small(month),
            year_of_century: small(year % 100),
            century: small(year / 100),
        }
    }
}

/// The Gregorian date, `days` after 1 January 1970. Years are counted from March here, so that the leap day is a year's last.
fn date(days: u64) -> (u64, u64, u64) {
    const DAYS_400_YEARS: u64 = 146_097;
    // From 1 March of the year 0.
    let days = days + 719_468;
    let (era, day) = (days / DAYS_400_YEARS, days % DAYS_400_YEARS);
    // Less the leap days: one in four years, but none at the turn of a century, but one at that of the fourth.
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Five months in a row from March always have 153 days.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let year = 400 * era + year + u64::from(month >= 10);
    (year, (month + 2) % 12 + 1, day)
}

/// Every number here is below 100, until the year 10000.
fn small(number: u64) -> u8 {
    u8::try_from(number).unwrap_or(99)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::widths_agree;

    fn at(seconds: u64) -> Rtc {
        Rtc::with_clock(Box::new(move || UNIX_EPOCH + Duration::from_secs(seconds)))
    }

    fn read(rtc: &Rtc, register: u8) -> u8 {
        assert_eq!(rtc.write(INDEX, &[register]), Action::None);
        let mut data = [0];
        rtc.read(DATA, &mut data);
        data[0]
    }

    fn write(rtc: &Rtc, register: u8, value: u8) {
        // One word access: index, then data.
        assert_eq!(rtc.write(INDEX, &[register, value]), Action::None);
    }

    fn all(rtc: &Rtc) -> [u8; 8] {
        [0x32, 0x09, 0x08, 0x07, 0x04, 0x02, 0x00, 0x06].map(|register| read(rtc, register))
    }

    #[test]
    fn the_time_is_in_bcd_until_the_guest_asks_for_binary() {
        // Saturday 21 November 2026, 23:45:59 UTC.
        let rtc = at(1_795_304_759);
        assert_eq!(all(&rtc), [0x20, 0x26, 0x11, 0x21, 0x23, 0x45, 0x59, 0x07]);
        write(&rtc, 0x0b, 0x06);
        assert_eq!(all(&rtc), [20, 26, 11, 21, 23, 45, 59, 7]);
    }

    #[test]
    fn dates_follow_the_gregorian_calendar() {
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(11_016), (2000, 2, 29));
        assert_eq!(date(11_017), (2000, 3, 1));
        assert_eq!(date(47_540), (2100, 2, 28));
        assert_eq!(date(47_541), (2100, 3, 1));
        // Day by day for 800 years, against the rules themselves.
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..800 * 365 {
            assert_eq!(date(days), (year, month, day));
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let last = match month {
                2 if leap => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day = if day == last { 1 } else { day + 1 };
            month = if day == 1 { month % 12 + 1 } else { month };
            year += u64::from((month, day) == (1, 1));
        }
    }

    #[test]
    fn the_status_registers_say_24_hours_no_update_and_a_good_battery() {
        let rtc = at(0);
        for register in 0x0a..0x0e {
            write(&rtc, register, 0xff);
        }
        assert_eq!(read(&rtc, 0x0a) & UPDATE_IN_PROGRESS, 0);
        write(&rtc, 0x0b, 0x00);
        assert_eq!(read(&rtc, 0x0b), HOURS_24);
        assert_eq!(read(&rtc, 0x0c), 0);
        assert_eq!(read(&rtc, 0x0d), VALID);
    }

    #[test]
    fn ram_keeps_what_is_written_and_the_time_does_not() {
        let rtc = at(0);
        write(&rtc, 0x7f, 0xaa);
        write(&rtc, 0x0f, 0x55);
        write(&rtc, 0x09, 0x00);
        assert_eq!(
            [read(&rtc, 0x7f), read(&rtc, 0x0f), read(&rtc, 0x09)],
            [0xaa, 0x55, 0x70]
        );
    }

    #[test]
    fn the_nmi_bit_is_no_part_of_the_index() {
        let rtc = at(0);
        write(&rtc, 0x80 | 0x40, 0x12);
        assert_eq!(read(&rtc, 0x40), 0x12);
    }

    #[test]
    fn a_clock_before_1970_or_far_ahead_still_answers() {
        let early = Rtc::with_clock(Box::new(|| UNIX_EPOCH - Duration::from_secs(1)));
        assert_eq!(read(&early, 0x09), 0x70);
        assert_eq!(all(&at(1 << 50))[0], 0x99);
    }

    #[test]
    fn byte_and_word_accesses_agree() {
        let write = |rtc: &mut Rtc, at, data: &[u8]| assert_eq!(rtc.write(at, data), Action::None);
        widths_agree(|| at(1_795_304_759), (0..2, 2), Rtc::read, write, 100_000);
    }
}
