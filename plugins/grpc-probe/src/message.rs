//! Bytes of `grpc.health.v1`: gRPC's framing and the two protobuf messages. It must not know HTTP.

/// What a service said of itself (`HealthCheckResponse.ServingStatus`).
pub(crate) const SERVING: u64 = 1;

/// The name of a serving status, as Go prints it.
pub(crate) fn status_name(status: u64) -> String {
    match status {
        0 => "UNKNOWN".to_owned(),
        SERVING => "SERVING".to_owned(),
        2 => "NOT_SERVING".to_owned(),
        3 => "SERVICE_UNKNOWN".to_owned(),
        other => other.to_string(),
    }
}

/// The name of a status code, as Go prints it.
pub(crate) fn code_name(code: u32) -> String {
    const NAMES: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    let name = usize::try_from(code).ok().and_then(|code| NAMES.get(code));
    name.map_or_else(|| format!("Code({code})"), |name| (*name).to_owned())
}

/// A framed `HealthCheckRequest`.
pub(crate) fn request(service: &str) -> Vec<u8> {
    let mut message = Vec::with_capacity(service.len() + 4);
    if !service.is_empty() {
        message.push(0x0a);
        put_varint(&mut message, service.len() as u64);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.append(&mut message);
    framed
}

/// The serving status in a framed `HealthCheckResponse`.
pub(crate) fn response(framed: &[u8]) -> Result<u64, &'static str> {
    let (head, rest) = framed.split_at_checked(5).ok_or("the answer has no message")?;
    if head[0] != 0 {
        return Err("the answer is compressed, which was not asked for");
    }
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    let mut message = rest.get(..length).ok_or("the answer's message is cut short")?;
    let mut status = 0;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        match (key >> 3, key & 7) {
            (1, 0) => status = varint(&mut message)?,
            (_, 0) => drop(varint(&mut message)?),
            (_, 1) => skip(&mut message, 8)?,
            (_, 2) => {
                let length = varint(&mut message)?;
                skip(&mut message, usize::try_from(length).map_err(|_| WRONG)?)?;
            }
            (_, 5) => skip(&mut message, 4)?,
            _ => return Err(WRONG),
        }
    }
    Ok(status)
}

const WRONG: &str = "the answer is not a HealthCheckResponse";

fn skip(message: &mut &[u8], length: usize) -> Result<(), &'static str> {
    *message = message.get(length..).ok_or(WRONG)?;
    Ok(())
}

fn varint(message: &mut &[u8]) -> Result<u64, &'static str> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first().ok_or(WRONG)?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(WRONG)
}

fn put_varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{code_name, request, response};

    #[test]
    fn requests() {
        assert_eq!(request(""), [0, 0, 0, 0, 0]);
        assert_eq!(request("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(request(&"x".repeat(200))[..8], [0, 0, 0, 0, 203, 0x0a, 200, 1]);
    }

    #[test]
    fn responses() {
        assert_eq!(response(&[0, 0, 0, 0, 2, 8, 1]), Ok(1));
        assert_eq!(response(&[0, 0, 0, 0, 0]), Ok(0));
        assert_eq!(response(&[0, 0, 0, 0, 6, 0x12, 1, 9, 8, 2, 0]), Err("the answer is not a HealthCheckResponse"));
        assert_eq!(response(&[0, 0, 0, 0, 5, 0x12, 1, 9, 8, 2]), Ok(2));
        for broken in [&[][..], &[1, 0, 0, 0, 0], &[0, 0, 0, 0, 9, 8], &[0, 0, 0, 0, 1, 8], &[0, 0, 0, 0, 2, 0x0a, 9]] {
            assert!(response(broken).is_err(), "{broken:?}");
        }
        assert!(response(&[&[0, 0, 0, 0, 12, 8][..], &[0xff; 11]].concat()).is_err());
    }

    #[test]
    fn codes() {
        assert_eq!(
            (code_name(12), code_name(14), code_name(99)),
            ("Unimplemented".into(), "Unavailable".into(), "Code(99)".into())
        );
    }
}
