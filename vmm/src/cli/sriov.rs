//! The arguments of `viaduct sriov`.

use std::str::FromStr;

use clap::Args;
use vfio::host::{
    Mac,
    sriov::{LinkState, Rate, Setting, Vlan},
};

/// Show, make, remove and set virtual functions.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    viaduct sriov eth2                              what there is\n  \
    viaduct sriov 03:00.1 --vfs 4                   make it four\n  \
    viaduct sriov eth2 --vf 1 --mac 02:00:00:00:00:01 --vlan 100 --trust on\n\n\
    The kernel changes their number only from 0 and to 0: for another number all go first, and their settings with them.")]
#[allow(
    rustdoc::broken_intra_doc_links,
    reason = "brackets are for what may be left out: clap shows these texts as they stand"
)]
pub struct SriovArgs {
    /// The physical function: its address or its network interface
    #[arg(value_name = "PF")]
    pub physical: String,
    /// How many virtual functions there shall be
    #[arg(long, value_name = "N")]
    pub vfs: Option<u32>,
    /// Whether the host's drivers take new ones; as it was if left out
    #[arg(long, value_name = "on|off", requires = "vfs")]
    pub probe: Option<Switch>,
    /// Remove virtual functions that the host itself is using
    #[arg(long, requires = "vfs")]
    pub force: bool,
    /// The virtual function to set, by its number
    #[arg(long, value_name = "I", requires = "setting")]
    pub vf: Option<u32>,
    /// What to set for it
    #[command(flatten)]
    pub settings: SettingArgs,
    /// Print the facts as JSON
    #[arg(long)]
    pub json: bool,
    /// Print what would be done, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// What can be set for a virtual function.
#[derive(Debug, Args)]
#[group(id = "setting", multiple = true, requires = "vf")]
#[allow(
    rustdoc::broken_intra_doc_links,
    reason = "brackets are for what may be left out: clap shows these texts as they stand"
)]
pub struct SettingArgs {
    /// Its MAC address
    #[arg(long, value_name = "MAC")]
    pub mac: Option<Mac>,
    /// Its VLAN, which the card adds and takes away: V[:PRIORITY]; 0 is none
    #[arg(long, value_name = "V[:QOS]", value_parser = parse_vlan)]
    pub vlan: Option<Vlan>,
    /// Whether it may be promiscuous and change its address
    #[arg(long, value_name = "on|off")]
    pub trust: Option<Switch>,
    /// Whether frames with another sender than its address are dropped
    #[arg(long, value_name = "on|off")]
    pub spoofchk: Option<Switch>,
    /// How fast it may send, and what it gets in any case, in Mbit/s: MAX[:MIN]; 0 is no limit
    #[arg(long, value_name = "MAX[:MIN]", value_parser = parse_rate)]
    pub rate: Option<Rate>,
    /// What it is told of its link: that of the physical one, up, or down
    #[arg(long, value_name = "auto|on|off", value_parser = parse_link)]
    pub link: Option<LinkState>,
}

impl SettingArgs {
    /// What is asked for, in the order in which it is set: what a driver checks the others against comes first.
    pub fn all(&self) -> Vec<Setting> {
        [
            self.trust.map(|switch| Setting::Trust(switch.0)),
            self.mac.map(Setting::Mac),
            self.vlan.map(Setting::Vlan),
            self.spoofchk.map(|switch| Setting::SpoofCheck(switch.0)),
            self.rate.map(Setting::Rate),
            self.link.map(Setting::Link),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch(pub bool);

impl FromStr for Switch {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "on" => Ok(Self(true)),
            "off" => Ok(Self(false)),
            _ => Err("write on or off"),
        }
    }
}

/// 12 bits, of which all ones is reserved (IEEE 802.1Q); three bits of priority.
fn parse_vlan(text: &str) -> Result<Vlan, &'static str> {
    const WRONG: &str =
        "write a VLAN from 0 to 4094, and a priority from 0 to 7 if need be, such as 100 or 100:3";
    let (id, priority) = text.split_once(':').unwrap_or((text, "0"));
    let id = plain(id).filter(|&id: &u16| id < 4095).ok_or(WRONG)?;
    let priority = plain(priority).filter(|&priority: &u8| priority < 8);
    Ok(Vlan {
        id,
        priority: priority.ok_or(WRONG)?,
        is_service: false,
    })
}

fn parse_rate(text: &str) -> Result<Rate, &'static str> {
    const WRONG: &str = "write Mbit/s, such as 500, or 500:100 with what it gets in any case, which is no more than the first";
    let (max, min) = text.split_once(':').unwrap_or((text, "0"));
    let (max, min) = (plain(max).ok_or(WRONG)?, plain(min).ok_or(WRONG)?);
    if max != 0 && min > max {
        return Err(WRONG);
    }
    Ok(Rate { max, min })
}

fn parse_link(text: &str) -> Result<LinkState, &'static str> {
    match text {
        "auto" => Ok(LinkState::Auto),
        "on" => Ok(LinkState::On),
        "off" => Ok(LinkState::Off),
        _ => Err("write auto, on or off"),
    }
}

/// A number of digits alone: `parse` takes a sign as well.
fn plain<T: FromStr>(text: &str) -> Option<T> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parsed(line: &str) -> Result<SriovArgs, clap::Error> {
        let words = ["viaduct", "sriov"].into_iter().chain(line.split(' '));
        match Cli::try_parse_from(words)?.command {
            Command::Sriov(args) => Ok(args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn settings_come_in_the_order_in_which_drivers_check_them() {
        let line = "eth2 --vf 1 --link off --rate 500:20 --vlan 100:3 --mac 02:00:00:00:00:01 --spoofchk off --trust on";
        let args = parsed(line).unwrap();
        let words: Vec<String> = args
            .settings
            .all()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            words,
            [
                "trust on",
                "mac 02:00:00:00:00:01",
                "vlan 100 qos 3",
                "spoofchk off",
                "max_tx_rate 500 min_tx_rate 20",
                "state disable",
            ]
        );
        assert_eq!((args.vf, args.vfs), (Some(1), None));
    }

    #[test]
    fn what_cannot_be_is_bad_usage() {
        for wrong in [
            "eth2 --vf 1",
            "eth2 --mac 02:00:00:00:00:01",
            "eth2 --probe on",
            "eth2 --force",
            "eth2 --vfs -1",
            "eth2 --vfs 3 --probe maybe",
            "eth2 --vf 1 --mac 01:00:00:00:00:01",
            "eth2 --vf 1 --mac 00:00:00:00:00:00",
            "eth2 --vf 1 --vlan 4095",
            "eth2 --vf 1 --vlan 1:8",
            "eth2 --vf 1 --vlan +1",
            "eth2 --vf 1 --rate 10:20",
            "eth2 --vf 1 --rate fast",
            "eth2 --vf 1 --link up",
        ] {
            let error = parsed(wrong).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn number_and_settings_go_together() {
        let args = parsed("03:00.1 --vfs 4 --probe off --vf 3 --vlan 0 --rate 0:5 --json").unwrap();
        assert_eq!((args.vfs, args.probe), (Some(4), Some(Switch(false))));
        assert_eq!(args.settings.all().len(), 2);
        assert!(args.json && !args.dry_run && !args.force);
    }
}
