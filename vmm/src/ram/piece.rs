//! RAM in pieces, around addresses that a card takes over.

use std::{ops, sync::Arc};

use devices::mapping::HostMapping;

use super::{Ram, Range};

/// A part of a range, which it keeps alive.
struct Piece {
    range: Arc<Range>,
    offset: usize,
    len: usize,
}

// SAFETY: `piece` cuts it out of its range, which keeps its own promise and lives as long as the piece.
unsafe impl HostMapping for Piece {
    fn address(&self) -> usize {
        self.range.address() + self.offset
    }

    fn len(&self) -> usize {
        self.len
    }
}

impl Ram {
    /// What is not in `hole`: where each piece is in the guest, and what backs it. The hole consists of whole pages.
    pub fn around(&self, hole: &ops::Range<u64>) -> Vec<(u64, Arc<dyn HostMapping>)> {
        let pieces = self.ranges.iter().flat_map(|(guest, range)| {
            let end = guest + range.len as u64;
            let before = *guest..hole.start.min(end);
            let after = hole.end.max(*guest)..end;
            [before, after].map(|wanted| piece(*guest, range, &wanted))
        });
        pieces.flatten().collect()
    }
}

/// The part of a range at `guest` that the guest has at `wanted`, unless that is empty.
fn piece(
    guest: u64,
    range: &Arc<Range>,
    wanted: &ops::Range<u64>,
) -> Option<(u64, Arc<dyn HostMapping>)> {
    let offset = usize::try_from(wanted.start.checked_sub(guest)?).ok()?;
    let len = usize::try_from(wanted.end.checked_sub(wanted.start)?).ok()?;
    let is_inside = len > 0 && offset.checked_add(len)? <= range.len;
    is_inside.then(|| {
        let range = range.clone();
        let piece: Arc<dyn HostMapping> = Arc::new(Piece { range, offset, len });
        (wanted.start, piece)
    })
}
