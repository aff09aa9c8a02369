// SPDX-License-Identifier: GPL-2.0-only
//! Typed views over the bytes of on-disk structures.
//!
//! The disk is little-endian, and nothing on it is aligned or trusted, so no structure is ever cast
//! onto it. [`le_view!`] declares one as a list of fields with their offsets; the fields must follow
//! each other without a gap up to the declared size, which the compiler checks, so a mistyped offset
//! does not build. Reading a field of a view cannot fail: the one length check is where the view is made.

/// A little-endian value with a fixed size on disk.
pub(crate) trait Le: Copy {
    /// Bytes on disk.
    const SIZE: usize;
    /// Reads the value from `bytes`, which the caller made [`Self::SIZE`] long.
    fn get(bytes: &[u8]) -> Self;
    /// Writes the value to `bytes`, which the caller made [`Self::SIZE`] long.
    fn put(self, bytes: &mut [u8]);
}

macro_rules! le_int {
    ($($ty:ty),*) => {$(
        impl Le for $ty {
            const SIZE: usize = size_of::<$ty>();
            fn get(bytes: &[u8]) -> Self {
                bytes.first_chunk().map_or(0, |chunk| <$ty>::from_le_bytes(*chunk))
            }
            fn put(self, bytes: &mut [u8]) {
                if let Some(chunk) = bytes.first_chunk_mut() {
                    *chunk = self.to_le_bytes();
                }
            }
        }
    )*};
}
le_int!(u8, u16, u32, u64);

impl<T: Le + Default, const N: usize> Le for [T; N] {
    const SIZE: usize = T::SIZE * N;
    fn get(bytes: &[u8]) -> Self {
        let mut values = [T::default(); N];
        for (value, chunk) in values.iter_mut().zip(bytes.chunks_exact(T::SIZE)) {
            *value = T::get(chunk);
        }
        values
    }
    fn put(self, bytes: &mut [u8]) {
        for (value, chunk) in self.into_iter().zip(bytes.chunks_exact_mut(T::SIZE)) {
            value.put(chunk);
        }
    }
}

/// Where a structure made of `fields` (offset, size) ends, or `usize::MAX` if two of them overlap
/// or leave a gap. For the layout assertions of [`le_view!`].
pub(crate) const fn layout_end(fields: &[(usize, usize)]) -> usize {
    let mut at = 0;
    let mut i = 0;
    while i < fields.len() {
        if fields[i].0 != at {
            return usize::MAX;
        }
        at += fields[i].1;
        i += 1;
    }
    at
}

/// Declares an on-disk structure: `name / setter: type = offset;` for each field (the setter may be left out).
macro_rules! le_view {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident [$len:literal] {
            $( $(#[$fmeta:meta])* $field:ident $(/ $set:ident)? : $ty:ty = $off:literal; )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy)]
        $vis struct $name<B>(B);

        static_assertions::const_assert_eq!(
            $crate::le::layout_end(&[$(($off, <$ty as $crate::le::Le>::SIZE)),*]),
            $len
        );

        impl $name<()> {
            /// Bytes on disk.
            $vis const LEN: usize = $len;
        }

        impl<'a> $name<&'a [u8; $len]> {
            /// The structure at byte `off` of `bytes`, or nothing if it does not fit there.
            $vis fn at(bytes: &'a [u8], off: usize) -> Option<Self> {
                bytes.get(off..)?.first_chunk().map(Self)
            }
        }

        impl<'a> $name<&'a mut [u8; $len]> {
            /// The structure at byte `off` of `bytes` for writing, or nothing if it does not fit there.
            $vis fn at_mut(bytes: &'a mut [u8], off: usize) -> Option<Self> {
                bytes.get_mut(off..)?.first_chunk_mut().map(Self)
            }
        }

        impl<B: core::ops::Deref<Target = [u8; $len]>> $name<B> {
            $(
                $(#[$fmeta])*
                #[doc = concat!("`", stringify!($field), "`, at byte ", stringify!($off), ".")]
                $vis fn $field(&self) -> $ty {
                    <$ty as $crate::le::Le>::get(&self.0[$off..$off + <$ty as $crate::le::Le>::SIZE])
                }
            )*
        }

        impl<B: core::ops::DerefMut<Target = [u8; $len]>> $name<B> {
            $($(
                #[doc = concat!("Sets [`Self::", stringify!($field), "`].")]
                $vis fn $set(&mut self, value: $ty) {
                    <$ty as $crate::le::Le>::put(value, &mut self.0[$off..$off + <$ty as $crate::le::Le>::SIZE]);
                }
            )?)*
        }
    };
}
pub(crate) use le_view;

#[cfg(test)]
mod tests {
    use super::*;

    le_view! {
        /// A structure for the tests below.
        struct Sample[12] {
            first: u16 = 0;
            second / set_second: u32 = 2;
            rest / set_rest: [u16; 3] = 6;
        }
    }

    #[test]
    fn fields_are_read_where_they_were_declared() {
        let bytes = [0xff, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        let sample = Sample::<&[u8; 12]>::at(&bytes, 1).expect("twelve bytes follow");
        assert_eq!(sample.first(), 0x0201);
        assert_eq!(sample.second(), 0x0605_0403);
        assert_eq!(sample.rest(), [0x0807, 0x0a09, 0x0c0b]);
        assert!(Sample::<&[u8; 12]>::at(&bytes, 2).is_none());
        assert_eq!(Sample::LEN, 12);
        assert!(Sample::<&[u8; 12]>::at(&bytes, usize::MAX).is_none());
    }

    #[test]
    fn a_set_field_changes_its_bytes_and_no_others() {
        let mut bytes = [0u8; 12];
        let mut sample = Sample::<&mut [u8; 12]>::at_mut(&mut bytes, 0).expect("twelve bytes");
        sample.set_second(0x0403_0201);
        sample.set_rest([0, 0, 0xbbaa]);
        assert_eq!(bytes, [0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0xaa, 0xbb]);
    }

    #[test]
    fn gaps_and_overlaps_are_no_layout() {
        assert_eq!(layout_end(&[(0, 2), (2, 4)]), 6);
        assert_eq!(layout_end(&[(0, 2), (3, 4)]), usize::MAX);
        assert_eq!(layout_end(&[(0, 2), (1, 4)]), usize::MAX);
    }
}
