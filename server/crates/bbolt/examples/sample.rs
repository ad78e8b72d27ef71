//! Writes a file of `keys` entries for a look with bbolt's own tools:
//! `cargo run -p bbolt --example sample -- 10000 > sample.db && bbolt check sample.db`.

use std::io::{Cursor, Write};

use bbolt::Writer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let keys: u64 = std::env::args().nth(1).map_or(Ok(1_000), |keys| keys.parse())?;
    let mut writer = Writer::new(Cursor::new(Vec::new()))?;
    writer.bucket(b"key")?;
    for n in 0..keys {
        let mut key = n.to_be_bytes().to_vec();
        key.extend_from_slice(b"_\0\0\0\0\0\0\0\0");
        writer.put(&key, &vec![n as u8; (n as usize * 37) % 9_000])?;
    }
    writer.bucket(b"meta")?;
    writer.put(b"storageVersion", b"3.7.0")?;
    for n in 0..keys / 10 {
        writer.bucket(format!("z-{n:0width$}", width = 900).as_bytes())?;
    }
    let file = writer.finish()?.into_inner();
    std::io::stdout().write_all(&file)?;
    Ok(())
}
