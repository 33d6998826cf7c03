//! Protocol Buffers, as far as pprof needs them: varints, and fields with a length
//! (<https://protobuf.dev/programming-guides/encoding/>).

/// A message in the making.
#[derive(Clone, Debug, Default)]
pub(super) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// The message as it stands.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// A number; zero is what an absent field means.
    pub(super) fn number(&mut self, field: u32, value: u64) {
        if value != 0 {
            self.key(field, 0);
            self.varint(value);
        }
    }

    /// Numbers, packed; zeros are kept.
    pub(super) fn numbers(&mut self, field: u32, values: impl IntoIterator<Item = u64>) {
        let mut packed = Self::default();
        for value in values {
            packed.varint(value);
        }
        if !packed.bytes.is_empty() {
            self.bytes(field, &packed.bytes);
        }
    }

    /// Text; each occurrence of a repeated field counts, so empty text is kept.
    pub(super) fn text(&mut self, field: u32, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    /// A message within this one.
    pub(super) fn message(&mut self, field: u32, message: &Self) {
        self.bytes(field, &message.bytes);
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.key(field, 2);
        self.varint(bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
    }

    fn key(&mut self, field: u32, wire_type: u64) {
        self.varint(u64::from(field) << 3 | wire_type);
    }

    /// Seven bits per byte, the lowest first; the highest bit says that more follow.
    fn varint(&mut self, mut value: u64) {
        loop {
            let low = value.to_le_bytes()[0] & 0x7f;
            value >>= 7;
            if value == 0 {
                self.bytes.push(low);
                return;
            }
            self.bytes.push(low | 0x80);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A field's value, as it stands in the bytes.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(in super::super) enum Value {
        Number(u64),
        Bytes(Vec<u8>),
    }

    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (first, rest) = bytes.split_first().unwrap();
            *bytes = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return value;
            }
        }
        panic!("a varint of more than ten bytes");
    }

    /// The fields of a message, by the encoding's rules.
    pub(in super::super) fn fields(mut bytes: &[u8]) -> Vec<(u64, Value)> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let value = match key & 7 {
                0 => Value::Number(varint(&mut bytes)),
                2 => {
                    let length = usize::try_from(varint(&mut bytes)).unwrap();
                    let (value, rest) = bytes.split_at(length);
                    bytes = rest;
                    Value::Bytes(value.to_vec())
                }
                other => panic!("wire type {other}"),
            };
            fields.push((key >> 3, value));
        }
        fields
    }

    pub(in super::super) fn packed(mut bytes: &[u8]) -> Vec<u64> {
        let mut values = Vec::new();
        while !bytes.is_empty() {
            values.push(varint(&mut bytes));
        }
        values
    }

    #[test]
    fn the_examples_of_the_specification_come_out_byte_by_byte() {
        let mut message = Message::default();
        message.number(1, 150);
        message.text(2, "testing");
        let mut outer = Message::default();
        outer.message(3, &message);
        outer.numbers(6, [3, 270, 86_942]);
        assert_eq!(
            outer.into_bytes(),
            [
                &[0x1a, 0x0c, 0x08, 0x96, 0x01, 0x12, 0x07][..],
                b"testing",
                &[0x32, 0x06, 0x03, 0x8e, 0x02, 0x9e, 0xa7, 0x05],
            ]
            .concat()
        );
    }

    #[test]
    fn what_was_written_is_read_again() {
        for value in [0, 1, 127, 128, 1 << 35, u64::MAX] {
            let mut message = Message::default();
            message.numbers(4, [value, value]);
            let bytes = message.into_bytes();
            let [(4, Value::Bytes(inner))] = &fields(&bytes)[..] else {
                panic!("{bytes:?}");
            };
            assert_eq!(packed(inner), [value, value]);
        }
    }
}
