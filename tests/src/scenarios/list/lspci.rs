//! The facts of a function that both `lspci -Dvv` and `viaduct list --json` tell.

use serde_json::Value;

/// Vectors, then BAR and offset of the table and of the pending bits.
type Msix = (u64, (u64, u64), (u64, u64));

/// A function, as either has it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Function {
    pub(super) address: String,
    /// Vendor and device.
    pub(super) name: String,
    driver: Option<String>,
    group: Option<u64>,
    pin: Option<String>,
    msi: Option<u64>,
    pub(super) msix: Option<Msix>,
    /// Index, kind, size in bytes.
    bars: Vec<(u64, String, u64)>,
    rom: Option<u64>,
}

impl Function {
    /// The functions in what `lspci -Dvv` prints: a paragraph each.
    pub(super) fn all(text: &str) -> Vec<Self> {
        let paragraphs = text.split("\n\n").filter(|part| !part.trim().is_empty());
        paragraphs.map(Self::of_paragraph).collect()
    }

    fn of_paragraph(text: &str) -> Self {
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        let (address, rest) = first.split_once(' ').unwrap_or_default();
        let name = rest.split_once(": ").map_or("", |(_, name)| name);
        let name = name.split(" (rev ").next().unwrap_or_default();
        let name = name.split(" (prog-if ").next().unwrap_or_default();
        let mut function = Self {
            address: address.to_owned(),
            name: name.to_owned(),
            ..Self::default()
        };
        for line in lines {
            function.take(line);
        }
        function
    }

    /// A line about it. What belongs to a capability is indented once more, and may have the same words.
    fn take(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("\tKernel driver in use: ") {
            self.driver = Some(rest.to_owned());
        } else if let Some(rest) = line.strip_prefix("\tIOMMU group: ") {
            self.group = rest.parse().ok();
        } else if let Some(rest) = line.strip_prefix("\tInterrupt: pin ") {
            // "? routed to IRQ 11": lspci's way to say that there is a line and no pin.
            let pin = rest.chars().next().filter(|pin| *pin != '?');
            self.pin = pin.map(String::from);
        } else if let Some(rest) = line.strip_prefix("\tRegion ") {
            let index = rest.split(':').next().and_then(|index| index.parse().ok());
            self.bars.extend(
                index
                    .zip(size(rest))
                    .map(|(index, size)| (index, kind(rest), size)),
            );
        } else if line.starts_with("\tExpansion ROM") {
            self.rom = size(line);
        } else if let Some(rest) = after(line, "] MSI: Enable") {
            let count = after(rest, "Count=").and_then(|rest| rest.split('/').nth(1));
            self.msi = count.and_then(|count| count.split(' ').next()?.parse().ok());
        } else if let Some(rest) = after(line, "] MSI-X: Enable") {
            let count = after(rest, "Count=").and_then(|rest| rest.split(' ').next());
            let count = count.and_then(|count| count.parse().ok()).unwrap_or(0);
            self.msix = Some((count, Default::default(), Default::default()));
        } else if let (Some(rest), Some(msix)) =
            (line.strip_prefix("\t\tVector table: "), &mut self.msix)
        {
            msix.1 = place(rest);
        } else if let (Some(rest), Some(msix)) = (line.strip_prefix("\t\tPBA: "), &mut self.msix) {
            msix.2 = place(rest);
        }
    }

    /// A function of `viaduct list --json`.
    pub(super) fn of_json(json: &Value) -> Self {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let number = |value: &Value| value.as_u64().unwrap_or(u64::MAX);
        let place = |value: &Value| (number(&value["bar"]), number(&value["offset"]));
        let bar = |bar: &Value| {
            let kind = text(&bar["kind"]).unwrap_or_default();
            let prefetchable = if bar["prefetchable"] == true {
                " prefetchable"
            } else {
                ""
            };
            (
                number(&bar["index"]),
                format!("{kind}{prefetchable}"),
                number(&bar["size"]),
            )
        };
        let interrupts = &json["interrupts"];
        let msix = Some(&interrupts["msix"]).filter(|msix| !msix.is_null());
        let bars = json["bars"].as_array().into_iter().flatten();
        let names = [&json["vendor_name"], &json["device_name"]]
            .map(|name| name.as_str().unwrap_or_default());
        Self {
            address: text(&json["address"]).unwrap_or_default(),
            name: names.join(" "),
            driver: text(&json["driver"]),
            group: json["iommu_group"].as_u64(),
            pin: text(&interrupts["pin"]["pin"]),
            msi: interrupts["msi"]["vectors"].as_u64(),
            msix: msix.map(|msix| {
                (
                    number(&msix["vectors"]),
                    place(&msix["table"]),
                    place(&msix["pending"]),
                )
            }),
            bars: bars.map(bar).collect(),
            rom: json["rom"]["size"].as_u64(),
        }
    }
}

fn after<'a>(line: &'a str, what: &str) -> Option<&'a str> {
    line.split_once(what).map(|(_, rest)| rest)
}

/// `0: Memory at fe840000 (64-bit, non-prefetchable) [size=16K]`
fn kind(region: &str) -> String {
    let kind = match (region.contains("I/O ports"), region.contains("(64-bit")) {
        (true, _) => "ports",
        (_, true) => "memory64",
        _ => "memory32",
    };
    let prefetchable = region.contains(", prefetchable");
    format!("{kind}{}", if prefetchable { " prefetchable" } else { "" })
}

/// The number in `[size=16K]`.
fn size(line: &str) -> Option<u64> {
    let text = after(line, "[size=")?.split(']').next()?;
    let units = ["K", "M", "G"];
    let unit = units.iter().position(|unit| text.ends_with(unit));
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = unit.map_or(0, |unit| 10 * (unit + 1));
    Some(digits.parse::<u64>().ok()? << shift)
}

/// `BAR=3 offset=00002000`
fn place(text: &str) -> (u64, u64) {
    let mut words = text.split_whitespace();
    let bar = words
        .next()
        .and_then(|word| word.strip_prefix("BAR=")?.parse().ok());
    let offset = words.next().and_then(|word| word.strip_prefix("offset="));
    let offset = offset.and_then(|offset| u64::from_str_radix(offset, 16).ok());
    (bar.unwrap_or(u64::MAX), offset.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "0000:03:00.1 Ethernet controller: Intel Corporation 82576 Gigabit Network Connection (rev 01)
\tInterrupt: pin B routed to IRQ 23
\tIOMMU group: 8
\tRegion 0: Memory at fe840000 (32-bit, non-prefetchable) [size=128K]
\tRegion 2: I/O ports at d020 [size=32]
\tExpansion ROM at fe800000 [disabled] [size=256K]
\tCapabilities: [50] MSI: Enable- Count=1/1 Maskable+ 64bit+
\tCapabilities: [70] MSI-X: Enable+ Count=10 Masked-
\t\tVector table: BAR=3 offset=00000000
\t\tPBA: BAR=3 offset=00002000
\tCapabilities: [160 v1] Single Root I/O Virtualization (SR-IOV)
\t\tRegion 0: Memory at 00000000fe860000 (64-bit, prefetchable)
\tKernel driver in use: igb

0000:03:00.2 VGA compatible controller: Nobody Card (prog-if 00 [VGA controller])
";

    #[test]
    fn what_lspci_prints_is_read_as_what_list_prints() {
        let [port, other] = &Function::all(TEXT)[..] else {
            panic!("not two functions");
        };
        let json = serde_json::json!({
            "address": "0000:03:00.1",
            "vendor_name": "Intel Corporation",
            "device_name": "82576 Gigabit Network Connection",
            "driver": "igb",
            "iommu_group": 8,
            "rom": { "size": 0x4_0000 },
            "bars": [
                { "index": 0, "kind": "memory32", "prefetchable": false, "size": 0x2_0000 },
                { "index": 2, "kind": "ports", "prefetchable": false, "size": 32 },
            ],
            "interrupts": {
                "pin": { "pin": "B" },
                "msi": { "vectors": 1 },
                "msix": {
                    "vectors": 10,
                    "table": { "bar": 3, "offset": 0 },
                    "pending": { "bar": 3, "offset": 0x2000 },
                },
            },
        });
        assert_eq!(*port, Function::of_json(&json));
        assert_eq!((&*other.name, other.pin.clone()), ("Nobody Card", None));
    }
}
