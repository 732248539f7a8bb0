//! Messages of D-Bus as bytes (D-Bus specification 0.43, "Message Protocol"): what is sent of it, and what is read.

/// Longest message that is read. The service manager's are below a kilobyte.
const MAX_MESSAGE: usize = 1 << 20;
/// Bytes of a header before its fields.
const FIXED_HEADER: usize = 16;
/// Little endian, which every peer must read.
const LITTLE_ENDIAN: u8 = b'l';
const PROTOCOL_VERSION: u8 = 1;

/// Codes of header fields.
mod field {
    pub const PATH: u8 = 1;
    pub const INTERFACE: u8 = 2;
    pub const MEMBER: u8 = 3;
    pub const ERROR_NAME: u8 = 4;
    pub const REPLY_SERIAL: u8 = 5;
    pub const DESTINATION: u8 = 6;
    pub const SIGNATURE: u8 = 8;
}

/// Bytes that are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message of D-Bus is malformed: {0}")]
pub struct Malformed(pub &'static str);

/// A value with its type in front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Variant<'a> {
    /// `b`
    Bool(bool),
    /// `s`
    Text(&'a str),
    /// `au`
    Numbers(&'a [u32]),
}

/// Values in their wire form.
#[derive(Debug, Default)]
pub struct Body {
    bytes: Vec<u8>,
}

impl Body {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    /// `u`
    pub fn number(&mut self, value: u32) {
        self.align(4);
        self.bytes.extend(value.to_le_bytes());
    }

    /// `s` or `o`
    pub fn text(&mut self, text: &str) {
        // No text that is sent comes near 4 GiB.
        self.number(u32::try_from(text.len()).unwrap_or(u32::MAX));
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    fn signature(&mut self, signature: &str) {
        self.bytes.push(u8::try_from(signature.len()).unwrap_or(u8::MAX));
        self.bytes.extend(signature.as_bytes());
        self.bytes.push(0);
    }

    /// `a` of elements that begin on a multiple of `alignment`.
    pub fn array(&mut self, alignment: usize, elements: impl FnOnce(&mut Self)) {
        self.number(0);
        let length_at = self.bytes.len() - 4;
        self.align(alignment);
        let from = self.bytes.len();
        elements(self);
        let length = u32::try_from(self.bytes.len() - from).unwrap_or(u32::MAX);
        self.bytes[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// `v`
    pub fn variant(&mut self, value: &Variant<'_>) {
        match value {
            Variant::Bool(value) => {
                self.signature("b");
                self.number(u32::from(*value));
            }
            Variant::Text(text) => {
                self.signature("s");
                self.text(text);
            }
            Variant::Numbers(numbers) => {
                self.signature("au");
                self.array(4, |array| numbers.iter().for_each(|number| array.number(*number)));
            }
        }
    }

    /// `a(sv)`
    pub fn properties(&mut self, properties: &[(&str, Variant<'_>)]) {
        self.array(8, |array| {
            for (name, value) in properties {
                array.align(8);
                array.text(name);
                array.variant(value);
            }
        });
    }
}

/// A method that is called.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Whose.
    pub destination: &'a str,
    /// On which object.
    pub path: &'a str,
    /// Of which interface.
    pub interface: &'a str,
    /// Its name.
    pub member: &'a str,
    /// Types of its arguments.
    pub signature: &'a str,
}

impl Call<'_> {
    /// The message.
    #[must_use]
    pub fn encode(&self, serial: u32, body: &Body) -> Vec<u8> {
        const METHOD_CALL: u8 = 1;
        let mut message = Body { bytes: vec![LITTLE_ENDIAN, METHOD_CALL, 0, PROTOCOL_VERSION] };
        message.number(u32::try_from(body.bytes.len()).unwrap_or(u32::MAX));
        message.number(serial);
        message.array(8, |fields| {
            for (code, kind, value) in [
                (field::PATH, "o", self.path),
                (field::DESTINATION, "s", self.destination),
                (field::INTERFACE, "s", self.interface),
                (field::MEMBER, "s", self.member),
            ] {
                fields.align(8);
                fields.bytes.push(code);
                fields.signature(kind);
                fields.text(value);
            }
            fields.align(8);
            fields.bytes.push(field::SIGNATURE);
            fields.signature("g");
            fields.signature(self.signature);
        });
        message.align(8);
        message.bytes.extend(&body.bytes);
        message.bytes
    }
}

/// What a message is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The answer to the call with this serial number.
    Return(u32),
    /// The refusal of the call with this serial number, and the error's name.
    Error(u32, String),
    /// Sent to whoever listens: its name.
    Signal(String),
    /// A call, or what a later version of the protocol may add.
    Other,
}

/// A message that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub kind: Kind,
    signature: String,
    body: Vec<u8>,
}

/// How long a message is, once the first bytes of it are there.
///
/// # Errors
/// When they are not little endian, or it would be longer than any that is expected.
pub fn length(start: &[u8; FIXED_HEADER]) -> Result<usize, Malformed> {
    if start[0] != LITTLE_ENDIAN || start[3] != PROTOCOL_VERSION {
        return Err(Malformed("not little endian, or another version of the protocol"));
    }
    let number = |at: usize| u32::from_le_bytes([start[at], start[at + 1], start[at + 2], start[at + 3]]) as usize;
    let (body, fields) = (number(4), number(12));
    if body > MAX_MESSAGE || fields > MAX_MESSAGE {
        return Err(Malformed("it is longer than 1 MiB"));
    }
    Ok((FIXED_HEADER + fields).next_multiple_of(8) + body)
}

impl Message {
    /// Of a message's bytes, as many as [`length`] says.
    ///
    /// # Errors
    /// What is not as the specification says.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader { bytes, at: 1 };
        let kind = reader.byte()?;
        reader.at = 4;
        let body_length = reader.number()? as usize;
        reader.at = 12;
        let end = reader.number()? as usize + FIXED_HEADER;
        let (mut member, mut error, mut reply_serial, mut signature) = (None, None, None, String::new());
        while reader.at < end {
            reader.align(8);
            let code = reader.byte()?;
            match (code, reader.signature()?.as_str()) {
                (field::MEMBER, "s") => member = Some(reader.text()?),
                (field::ERROR_NAME, "s") => error = Some(reader.text()?),
                (field::REPLY_SERIAL, "u") => reply_serial = Some(reader.number()?),
                (field::SIGNATURE, "g") => signature = reader.signature()?,
                (_, "s" | "o") => drop(reader.text()?),
                (_, "u") => drop(reader.number()?),
                (_, "g") => drop(reader.signature()?),
                _ => return Err(Malformed("a header field of an unknown type")),
            }
        }
        reader.at = end.next_multiple_of(8);
        let body = reader.take(body_length)?.to_vec();
        let kind = match (kind, reply_serial) {
            (2, Some(serial)) => Kind::Return(serial),
            (3, Some(serial)) => Kind::Error(serial, error.unwrap_or_default()),
            (4, _) => Kind::Signal(member.unwrap_or_default()),
            (2 | 3, None) => return Err(Malformed("an answer without the serial number of its call")),
            _ => Kind::Other,
        };
        Ok(Self { kind, signature, body })
    }

    /// The texts among its values, up to the first value that is neither a text nor a number.
    ///
    /// # Errors
    /// When the body is shorter than its signature says.
    pub fn texts(&self) -> Result<Vec<String>, Malformed> {
        let mut reader = Reader { bytes: &self.body, at: 0 };
        let mut texts = Vec::new();
        for kind in self.signature.bytes() {
            match kind {
                b's' | b'o' => texts.push(reader.text()?),
                b'u' => drop(reader.number()?),
                _ => break,
            }
        }
        Ok(texts)
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(length).ok_or(Malformed("a length that overflows"))?;
        let taken = self.bytes.get(self.at..end).ok_or(Malformed("it ends early"))?;
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> Result<u32, Malformed> {
        self.align(4);
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn text(&mut self) -> Result<String, Malformed> {
        let length = self.number()? as usize;
        self.terminated(length)
    }

    fn signature(&mut self) -> Result<String, Malformed> {
        let length = usize::from(self.byte()?);
        self.terminated(length)
    }

    fn terminated(&mut self, length: usize) -> Result<String, Malformed> {
        let bytes = self.take(length)?;
        if self.byte()? != 0 {
            return Err(Malformed("a text without its end"));
        }
        String::from_utf8(bytes.to_vec()).map_err(|_| Malformed("a text that is not UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Call<'_> = Call { destination: "d.e", path: "/p", interface: "i.f", member: "Do", signature: "sa(sv)" };

    fn call() -> Vec<u8> {
        let mut body = Body::default();
        body.text("x");
        body.properties(&[("Delegate", Variant::Bool(true)), ("PIDs", Variant::Numbers(&[7, 8]))]);
        CALL.encode(5, &body)
    }

    #[test]
    fn values_stand_where_their_alignment_says() {
        let mut body = Body::default();
        body.text("x");
        body.properties(&[("PIDs", Variant::Numbers(&[7, 8]))]);
        #[rustfmt::skip]
        let expected = [
            1, 0, 0, 0, b'x', 0, 0, 0, // the text, and up to the array's length
            28, 0, 0, 0, 0, 0, 0, 0, // bytes from the first element on, which begins on eight bytes
            4, 0, 0, 0, b'P', b'I', b'D', b's', 0, // name
            2, b'a', b'u', 0, 0, 0, 0, // type; its length begins on four bytes
            8, 0, 0, 0, 7, 0, 0, 0, 8, 0, 0, 0,
        ];
        assert_eq!(body.bytes, expected);
    }

    #[test]
    fn a_call_has_the_length_that_its_header_says() {
        let bytes = call();
        assert_eq!(length(bytes[..16].try_into().unwrap()).unwrap(), bytes.len());
        let message = Message::decode(&bytes).unwrap();
        assert_eq!((message.kind, message.signature.as_str()), (Kind::Other, "sa(sv)"));
    }

    #[test]
    fn answers_are_told_apart() {
        let answer = |kind: u8, code: u8, of: &str, signature: &str, body: &Body| {
            let mut message = Body { bytes: vec![b'l', kind, 0, 1] };
            message.number(u32::try_from(body.bytes.len()).unwrap());
            message.number(77);
            message.array(8, |fields| {
                fields.bytes.push(field::REPLY_SERIAL);
                fields.signature("u");
                fields.number(5);
                fields.align(8);
                fields.bytes.push(code);
                fields.signature("s");
                fields.text(of);
                fields.align(8);
                fields.bytes.push(field::SIGNATURE);
                fields.signature("g");
                fields.signature(signature);
            });
            message.align(8);
            message.bytes.extend(&body.bytes);
            Message::decode(&message.bytes).unwrap()
        };
        let mut body = Body::default();
        body.number(9);
        body.text("/job/9");
        body.text("a.scope");
        body.text("done");
        let signal = answer(4, field::MEMBER, "JobRemoved", "uoss", &body);
        assert_eq!(signal.kind, Kind::Signal("JobRemoved".into()));
        assert_eq!(signal.texts().unwrap(), ["/job/9", "a.scope", "done"]);
        let error = answer(3, field::ERROR_NAME, "org.x.No", "s", &Body { bytes: b"\x02\0\0\0no\0".to_vec() });
        assert_eq!(error.kind, Kind::Error(5, "org.x.No".into()));
        assert_eq!(error.texts().unwrap(), ["no"]);
        assert_eq!(answer(2, field::MEMBER, "x", "", &Body::default()).kind, Kind::Return(5));
        let short = answer(4, field::MEMBER, "x", "s", &Body::default());
        assert_eq!(short.texts().unwrap_err(), Malformed("it ends early"));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_are_a_panic(at in 0_usize..200, value: u8, cut in 0_usize..200) {
            let mut bytes = call();
            let (at, cut) = (at % bytes.len(), cut % bytes.len());
            bytes[at] = value;
            let _ = length(bytes[..16].try_into().unwrap());
            let _ = Message::decode(&bytes).and_then(|message| message.texts());
            let _ = Message::decode(&bytes[..cut]);
        }
    }
}
