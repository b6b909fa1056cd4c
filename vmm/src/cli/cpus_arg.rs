//! `--cpus N[,sockets=S][,cores=C][,threads=T][,pin=LIST][,model=MODEL]`.

use std::str::FromStr;

use arch::cpuid::{
    model::{Model, UnknownModel},
    topology::{Topology, TopologyError},
};

/// The argument of `--cpus`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpusArg {
    /// How many, and how they are put together.
    pub topology: Topology,
    /// The host's processors that they run on, one each; wherever the host likes, if there is none.
    pub pin: Vec<usize>,
    /// What they can do.
    pub model: Model,
}

/// The text is not a number of CPUs with options.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpusArgError {
    /// No number, or none that a guest can have.
    #[error("'{0}' is not a number of CPUs: write 1 to 254")]
    Count(String),
    /// A key nobody knows.
    #[error(
        "'{0}' is not an option of --cpus: there are sockets=, cores=, threads=, pin= and model="
    )]
    Unknown(String),
    /// Not a number of parts.
    #[error("'{0}' is not a number from 1 to 254")]
    Parts(String),
    /// The parts do not multiply to the whole.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// Not a list of processors.
    #[error("'{0}' is not a list of processors: write each once, like pin=2-5, or pin=0,2,4")]
    List(String),
    /// Fewer or more processors than CPUs.
    #[error(
        "pin= names {named} processors for {cpus} CPUs: name one for each\n  or let all of them share a few:  taskset -c {list} viaduct run …"
    )]
    ListLength {
        /// Processors.
        named: usize,
        /// CPUs.
        cpus: u32,
        /// The processors.
        list: String,
    },
    /// No model.
    #[error(transparent)]
    Model(#[from] UnknownModel),
}

/// The most that a list may name; the kernel knows no more processors.
const MOST_PROCESSORS: usize = 8192;

impl FromStr for CpusArg {
    type Err = CpusArgError;

    fn from_str(text: &str) -> Result<Self, CpusArgError> {
        let mut parts = text.split(',');
        let count = parts.next().unwrap_or_default();
        let cpus = number(count).ok_or_else(|| CpusArgError::Count(count.to_owned()))?;
        let mut options = Options::default();
        for part in parts {
            options.set(part)?;
        }
        let topology = Topology::of(cpus, options.sockets, options.cores, options.threads)?;
        let pin = match &options.pin {
            Some(text) => list(text).ok_or_else(|| CpusArgError::List(text.clone()))?,
            None => Vec::new(),
        };
        match options.pin {
            Some(list) if u32::try_from(pin.len()) != Ok(cpus) => Err(CpusArgError::ListLength {
                named: pin.len(),
                cpus,
                list,
            }),
            _ => Ok(Self {
                topology,
                pin,
                model: options.model,
            }),
        }
    }
}

#[derive(Default)]
struct Options {
    sockets: Option<u32>,
    cores: Option<u32>,
    threads: Option<u32>,
    pin: Option<String>,
    model: Model,
    /// Whether the last part was of the list, which goes on over commas.
    is_in_list: bool,
}

impl Options {
    fn set(&mut self, part: &str) -> Result<(), CpusArgError> {
        let is_number = part.starts_with(|c: char| c.is_ascii_digit());
        if let (true, true, Some(list)) = (self.is_in_list, is_number, &mut self.pin) {
            list.push(',');
            list.push_str(part);
            return Ok(());
        }
        let unknown = || CpusArgError::Unknown(part.to_owned());
        let (key, value) = part.split_once('=').ok_or_else(unknown)?;
        let parts = || number(value).ok_or_else(|| CpusArgError::Parts(part.to_owned()));
        match key {
            "sockets" => self.sockets = Some(parts()?),
            "cores" => self.cores = Some(parts()?),
            "threads" => self.threads = Some(parts()?),
            "pin" => self.pin = Some(value.to_owned()),
            "model" => self.model = value.parse()?,
            _ => return Err(unknown()),
        }
        self.is_in_list = key == "pin";
        Ok(())
    }
}

/// A number of CPUs, or of what they are put together from.
fn number(text: &str) -> Option<u32> {
    let number = text.parse().ok()?;
    (1..=arch::layout::MAX_CPUS)
        .contains(&number)
        .then_some(number)
}

/// Processors in the order in which they are named; each once.
fn list(text: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= MOST_PROCESSORS {
            return None;
        }
        for processor in first..=last {
            if all.contains(&processor) {
                return None;
            }
            all.push(processor);
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<CpusArg, CpusArgError> {
        text.parse()
    }

    #[test]
    fn cpus_are_a_number_and_perhaps_more() {
        let plain = of("4").unwrap();
        assert_eq!((plain.topology.cpus(), plain.pin.len()), (4, 0));
        assert_eq!(plain.model, Model::Host);
        let full = of("8,sockets=2,cores=2,threads=2,pin=0-3,8,10-12,model=x86-64-v2").unwrap();
        assert_eq!(full.pin, [0, 1, 2, 3, 8, 10, 11, 12]);
        assert_eq!(full.model, Model::Level(2));
        assert_eq!(full.topology.sockets, 2);
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_reason() {
        for count in ["0", "255", "", "x", "-1"] {
            assert!(matches!(of(count), Err(CpusArgError::Count(_))), "{count}");
        }
        assert!(matches!(of("4,2"), Err(CpusArgError::Unknown(_))));
        assert!(matches!(of("4,dies=2"), Err(CpusArgError::Unknown(_))));
        assert!(matches!(of("4,cores=0"), Err(CpusArgError::Parts(_))));
        assert!(matches!(of("4,cores=3"), Err(CpusArgError::Topology(_))));
        assert!(matches!(of("4,model=486"), Err(CpusArgError::Model(_))));
        for list in ["5-2", "0,0", "a", "", "0-9999999999", "0-9000", "1-"] {
            let wrong = of(&format!("2,pin={list}"));
            assert!(matches!(wrong, Err(CpusArgError::List(_))), "{list}");
        }
        let short = of("4,pin=0-1").unwrap_err().to_string();
        assert!(
            short.contains("2 processors for 4 CPUs") && short.contains("taskset -c 0-1"),
            "{short}"
        );
    }
}
