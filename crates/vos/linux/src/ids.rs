//! User and group ids: `/proc` shows a container's processes in the host's ids.

/// One range of a user namespace's map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First id inside the container.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// Number of ids.
    pub count: u32,
}

/// A user namespace's map of user or group ids.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdMap(Vec<Range>);

/// What the kernel shows for an id that has no name in a namespace.
pub const OVERFLOW: u32 = 65534;

impl IdMap {
    /// Parses `/proc/PID/uid_map` or `gid_map` as read from outside; `None` for other text.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<IdMap> {
        let text = std::str::from_utf8(text).ok()?;
        let ranges = text.lines().map(|line| {
            let mut numbers = line.split_whitespace().map(|word| word.parse::<u32>().ok());
            let mut next = || numbers.next().flatten();
            Some(Range { inside: next()?, outside: next()?, count: next()? })
        });
        ranges.collect::<Option<Vec<Range>>>().map(IdMap)
    }

    /// The container's number for an id of the host.
    #[must_use]
    pub fn inside(&self, outside: u32) -> u32 {
        self.0
            .iter()
            .find_map(|range| {
                let offset = outside.checked_sub(range.outside)?;
                (offset < range.count).then(|| range.inside.wrapping_add(offset))
            })
            .unwrap_or(OVERFLOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_translated() {
        let map =
            IdMap::parse(b"         0     100000      65536\n     70000          5          1\n")
                .unwrap();
        assert_eq!(map.inside(100_000), 0);
        assert_eq!(map.inside(101_000), 1000);
        assert_eq!(map.inside(5), 70000);
        assert_eq!(map.inside(7), OVERFLOW);
        assert_eq!(IdMap::parse(b"0 x 1"), None);
    }
}
