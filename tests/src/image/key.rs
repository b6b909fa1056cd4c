//! The name of an image in the cache: a hash of everything that went into it.

/// FNV-1a, 64 bits. Not the standard library's hasher: that one may change with the compiler, and the cache with it.
#[derive(Debug)]
pub(super) struct Key(u64);

impl Key {
    pub(super) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Adds one input. Its length counts too, so that "ab","c" and "a","bc" differ.
    pub(super) fn with(mut self, input: impl AsRef<[u8]>) -> Self {
        let input = input.as_ref();
        for byte in input.len().to_le_bytes().iter().chain(input) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moving_a_byte_between_inputs_changes_the_key() {
        let one = Key::new().with("ab").with("c").to_string();
        let two = Key::new().with("a").with("bc").to_string();
        assert_ne!(one, two);
    }
}
