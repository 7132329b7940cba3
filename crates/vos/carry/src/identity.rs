//! Owners on the two sides: a DC has user and group ids of its own, each node maps them.

/// One range of ids, as a line of `/proc/PID/uid_map`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// First id inside the container.
    pub inside: u32,
    /// First id on the node.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The map of one kind of ids; the empty one changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMap {
    ranges: Vec<IdRange>,
}

/// What an id that is not mapped shows as (the kernel's overflow id).
pub const OVERFLOW_ID: u32 = 65534;

impl IdMap {
    /// From ranges.
    #[must_use]
    pub fn new(ranges: Vec<IdRange>) -> Self {
        IdMap { ranges }
    }

    /// Some id of the node that is mapped; `None`: all are, as they are.
    #[must_use]
    pub fn any(&self) -> Option<u32> {
        self.ranges.first().map(|range| range.outside)
    }

    /// A node's id as the container shows it.
    #[must_use]
    pub fn inside(&self, outside: u32) -> u32 {
        if self.ranges.is_empty() {
            return outside;
        }
        self.ranges
            .iter()
            .find_map(|range| {
                let offset = outside.checked_sub(range.outside)?;
                (offset < range.count).then(|| range.inside.saturating_add(offset))
            })
            .unwrap_or(OVERFLOW_ID)
    }

    /// A container's id as the node has it; `None`: not mapped.
    #[must_use]
    pub fn outside(&self, inside: u32) -> Option<u32> {
        if self.ranges.is_empty() {
            return Some(inside);
        }
        self.ranges.iter().find_map(|range| {
            let offset = inside.checked_sub(range.inside)?;
            (offset < range.count).then(|| range.outside.saturating_add(offset))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_mapped_both_ways() {
        let map = IdMap::new(vec![
            IdRange { inside: 0, outside: 1000, count: 1 },
            IdRange { inside: 1, outside: 100_000, count: 65535 },
        ]);
        assert_eq!((map.inside(1000), map.outside(0)), (0, Some(1000)));
        assert_eq!((map.inside(100_999), map.outside(1000)), (1000, Some(100_999)));
        assert_eq!((map.inside(5), map.outside(70_000)), (OVERFLOW_ID, None));
        assert_eq!((IdMap::default().inside(7), IdMap::default().outside(7)), (7, Some(7)));
    }
}
