//! The buffer that frames are read into.

use bytes::BytesMut;

/// A read buffer is grown by so much…
const GROW_BYTES: usize = 64 * 1024;
/// …once less than this of it is free. In between, reads fill what is there: frames that were taken off its
/// front share its memory, so growing means allocating.
const MIN_FREE_BYTES: usize = 4 * 1024;

/// Makes room in a read buffer, where there is too little.
pub(crate) fn make_room(buffer: &mut BytesMut) {
    if buffer.capacity() - buffer.len() < MIN_FREE_BYTES {
        buffer.reserve(GROW_BYTES);
    }
}
