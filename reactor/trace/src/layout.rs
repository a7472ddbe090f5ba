//! Where things are in the file, in words: a head, a text that describes the points, and a ring for each core.

/// The first word of a file that is ours: "RSTRACE1".
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"RSTRACE1");

/// Words of the head.
pub(crate) mod head {
    pub(crate) const MAGIC: usize = 0;
    pub(crate) const TICKS_PER_SECOND: usize = 1;
    pub(crate) const RINGS: usize = 2;
    pub(crate) const ENTRIES: usize = 3;
    pub(crate) const PID: usize = 4;
    pub(crate) const TEXT_BYTES: usize = 5;
    /// Where the text begins.
    pub(crate) const TEXT: usize = 8;
}

/// Where the rings begin: 16 KiB.
pub(crate) const RINGS_AT: usize = 2048;
/// Most bytes of the text.
pub(crate) const TEXT_BYTES_MAX: usize = (RINGS_AT - head::TEXT) * 8;

/// Words at the start of a ring; its entries follow.
pub(crate) mod ring {
    pub(crate) const CORE: usize = 0;
    /// Events written so far.
    pub(crate) const WRITTEN: usize = 1;
    /// Events up to this one have been cleared away.
    pub(crate) const CLEARED: usize = 2;
    /// Words before the first entry.
    pub(crate) const HEAD: usize = 8;
}

/// Words of an entry.
pub(crate) mod entry {
    /// The number of the event, from 1; 0 while it is being written. An entry that has the same number before and after
    /// its other words were read was not changed in between.
    pub(crate) const NUMBER: usize = 0;
    pub(crate) const TICK: usize = 1;
    pub(crate) const POINT: usize = 2;
    pub(crate) const OBJECT: usize = 3;
    pub(crate) const ARGS: usize = 4;
    pub(crate) const WORDS: usize = 8;
}

/// Words of a ring of so many entries.
pub(crate) const fn ring_words(entries: usize) -> usize {
    ring::HEAD + entries * entry::WORDS
}

/// Words of a file.
pub(crate) const fn file_words(rings: usize, entries: usize) -> usize {
    RINGS_AT + rings * ring_words(entries)
}
