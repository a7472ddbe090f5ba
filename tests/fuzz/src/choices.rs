//! Bytes as choices: the structure that targets give to what a fuzzer makes up.

/// Reads choices off an input; when it is used up, every choice is zero.
#[derive(Debug)]
pub struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    /// Choices from these bytes.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether there are none left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As many bytes as are there, at most `len`.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (now, later) = self.0.split_at(len.min(self.0.len()));
        self.0 = later;
        now
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        for (to, from) in array.iter_mut().zip(self.bytes(N)) {
            *to = *from;
        }
        array
    }

    /// A byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// Four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u16) -> u16 {
        self.u16() % end
    }

    /// A number that is often one where something happens: zero, a page, an end of the address space.
    pub fn address(&mut self) -> u64 {
        match self.u8() {
            kind @ 0..16 => u64::from(kind) << 12,
            kind @ 16..32 => (u64::from(kind) << 12) + u64::from(self.u16()),
            kind @ 32..40 => 0_u64.wrapping_sub(u64::from(kind) << 12),
            40..48 => u64::MAX,
            48..64 => 1 << 32,
            _ => self.u64(),
        }
    }
}
