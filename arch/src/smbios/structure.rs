//! One structure: a header, fields of fixed length, and the strings that fields name by number.

/// Type, length and handle.
const HEADER_LEN: usize = 4;

/// A structure that is being made.
pub(super) struct Structure {
    kind: u8,
    handle: u16,
    fields: Vec<u8>,
    strings: Vec<String>,
}

impl Structure {
    /// One of `kind`, which others name by `handle`.
    pub(super) fn new(kind: u8, handle: u16) -> Self {
        Self {
            kind,
            handle,
            fields: Vec::new(),
            strings: Vec::new(),
        }
    }

    /// The next field.
    pub(super) fn field(mut self, bytes: &[u8]) -> Self {
        self.fields.extend_from_slice(bytes);
        self
    }

    /// A string, and the field that names it; an empty one is none.
    pub(super) fn text(self, text: &str) -> Self {
        if text.is_empty() {
            return self.field(&[0]);
        }
        let named = self.string(text);
        let number = u8::try_from(named.strings.len()).unwrap_or(0);
        named.field(&[number])
    }

    /// A string that no field names. It must not be empty, nor have a NUL in it: either would end the strings.
    pub(super) fn string(mut self, text: &str) -> Self {
        self.strings.push(text.replace('\0', " "));
        self
    }

    /// As it is in the table.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let len = u8::try_from(HEADER_LEN + self.fields.len());
        let [low, high] = self.handle.to_le_bytes();
        // Structures are of fixed kinds, none longer than 40 bytes.
        let mut bytes = vec![self.kind, len.unwrap_or(u8::MAX), low, high];
        bytes.extend_from_slice(&self.fields);
        for text in &self.strings {
            bytes.extend_from_slice(text.as_bytes());
            bytes.push(0);
        }
        if self.strings.is_empty() {
            bytes.push(0);
        }
        bytes.push(0);
        bytes
    }
}
