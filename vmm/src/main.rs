//! The `viaduct` command: parse, call, map to an exit status.

use std::{env, error::Error, io::Write, process::ExitCode};

use vmm::cli::{self, Command, ParseError};

/// Bad usage, as clap has it.
const BAD_USAGE: u8 = 2;

fn main() -> ExitCode {
    if let Some(served) = vfio::host::serve_attributes() {
        return served;
    }
    let cli = match cli::parse(env::args_os().collect()) {
        Ok(cli) => cli,
        Err(ParseError::Usage(error)) => error.exit(),
        Err(ParseError::File(error)) => {
            eprintln!("viaduct: {}", explain(&error));
            return ExitCode::from(BAD_USAGE);
        }
    };
    start_log(cli.verbose);
    let ended = match cli.command {
        Command::Run(args) => vmm::run::run(&args),
        Command::List(args) => vmm::list::list(&args),
        Command::Bind(args) => vmm::binding::bind(&args),
        Command::Unbind(args) => vmm::binding::unbind(&args),
        Command::Restore(args) => vmm::binding::restore(&args),
        Command::Doctor(args) => vmm::doctor::doctor(&args),
        Command::Sriov(args) => vmm::sriov::sriov(&args),
    };
    ended.unwrap_or_else(|error| {
        eprintln!("viaduct: {}", explain(&*error));
        ExitCode::FAILURE
    })
}

/// Logs go to stderr, one line each, without a time: whoever collects them stamps them.
fn start_log(verbose: u8) {
    struct Stderr;
    impl log::Log for Stderr {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            let level = record.level().as_str().to_ascii_lowercase();
            // At once: several threads log, and each has lines of its own. Nobody is left to tell if stderr is closed.
            let line = format!("viaduct: {level}: {}\n", record.args());
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
        fn flush(&self) {}
    }
    static LOG: Stderr = Stderr;
    let level = match verbose {
        0 => log::LevelFilter::Warn,
        1 => log::LevelFilter::Info,
        _ => log::LevelFilter::Trace,
    };
    if log::set_logger(&LOG).is_ok() {
        log::set_max_level(level);
    }
}

/// An error for a person: what failed and why, from the outermost to the innermost on one line, then every advice below it.
///
/// An error's first line says what failed, its further lines what to do; the why is its source.
fn explain(error: &dyn Error) -> String {
    let chain = std::iter::successors(Some(error), |&error| error.source());
    let texts: Vec<String> = chain.map(ToString::to_string).collect();
    let (causes, advice): (Vec<_>, Vec<_>) = texts
        .iter()
        .map(|text| text.split_once('\n').unwrap_or((text, "")))
        .unzip();
    let advice = advice.into_iter().filter(|lines| !lines.is_empty());
    std::iter::once(causes.join(": ").as_str())
        .chain(advice)
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("0000:03:10.3: cannot be opened\n  take another")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_share_a_line_and_advice_follows() {
        let error = Outer(std::io::Error::other("it is in use"));
        assert_eq!(
            explain(&error),
            "0000:03:10.3: cannot be opened: it is in use\n  take another"
        );
    }
}
