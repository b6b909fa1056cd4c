//! The report as a person reads it: one line a check, then what to type.

use std::fmt::{self, Write};

use super::report::{Check, Fix, Report, Verdict};

/// How wide the column of names is: as the longest of them.
const NAMES: usize = 22;

/// Prints the report, with colours for those who see them.
pub(super) fn write(report: &Report, colours: bool, out: &mut String) -> fmt::Result {
    for section in &report.sections {
        writeln!(out, "{}", section.of)?;
        for check in &section.checks {
            line(check, colours, out)?;
        }
        writeln!(out)?;
    }
    writeln!(out, "{}", sum(report))
}

fn line(check: &Check, colours: bool, out: &mut String) -> fmt::Result {
    let (word, colour) = match check.verdict {
        Verdict::Good => ("ok", "32"),
        Verdict::Note => ("note", "36"),
        Verdict::Warning => ("warn", "33"),
        Verdict::Failure => ("FAIL", "31;1"),
        Verdict::Unknown => ("?", "35"),
    };
    let word = format!("{word:<4}");
    let word = if colours {
        format!("\x1b[{colour}m{word}\x1b[0m")
    } else {
        word
    };
    write!(out, "  {word}  {:<NAMES$}  {}", check.name, check.what)?;
    if let Some(why) = &check.why {
        write!(out, "; {why}")?;
    }
    writeln!(out)?;
    check.fixes.iter().try_for_each(|fix| advice(fix, out))
}

fn advice(fix: &Fix, out: &mut String) -> fmt::Result {
    match &fix.command {
        Some(command) => writeln!(out, "          {}:  {command}", fix.how),
        None => writeln!(out, "          {}", fix.how),
    }
}

fn sum(report: &Report) -> String {
    let several = |count: usize, what: &str| match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    };
    let warnings = match report.count(Verdict::Warning) {
        0 => String::new(),
        count => format!(", with {}", several(count, "warning")),
    };
    if report.ready {
        return format!("ready{warnings}");
    }
    let failures = several(report.count(Verdict::Failure), "failure");
    format!("not ready: {failures}{warnings}")
}

#[cfg(test)]
mod tests {
    use super::super::report::Section;
    use super::*;

    fn text(checks: Vec<Check>, colours: bool) -> String {
        let of = "this host".into();
        let report = Report::of(vec![Section { of, checks }], true);
        let mut out = String::new();
        write(&report, colours, &mut out).unwrap();
        out
    }

    #[test]
    fn a_check_is_a_line_and_its_fixes_are_below_it() {
        let check = Check::failure("KVM", "the module kvm_amd is not loaded")
            .why("it was never asked for")
            .fix(Fix::root("load it", "modprobe kvm_amd"))
            .fix(Fix::by_hand("or boot another kernel"));
        assert_eq!(
            text(vec![check], false),
            "this host\n  FAIL  KVM                     the module kvm_amd is not loaded; it was never asked for\n\
             \x20         load it:  modprobe kvm_amd\n          or boot another kernel\n\nnot ready: 1 failure\n"
        );
    }

    #[test]
    fn colours_are_for_terminals() {
        let checks = || vec![Check::good("KVM", "fine"), Check::warning("x", "y")];
        assert!(!text(checks(), false).contains('\x1b'));
        let coloured = text(checks(), true);
        assert!(coloured.contains("\x1b[32mok  \x1b[0m"), "{coloured}");
        assert!(coloured.ends_with("ready, with 1 warning\n"));
    }
}
