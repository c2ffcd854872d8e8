//! Delimiters: found out by the header, ordered by the stage, or named by the file.

use crate::exports::{Batch, Encoding, ExportError, Input, ReadOptions, read_file};

/// The values of `openid` and `note`, and the encoding.
fn read(content: &[u8], options: &ReadOptions<'_>) -> Result<(Vec<String>, Encoding), ExportError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("u.csv");
    std::fs::write(&path, content).unwrap();
    let mut found = Vec::new();
    let report = read_file(&Input::of_file(path), options, &mut |batch: Batch| {
        assert_eq!(batch.bad, []);
        let column = |wanted: &str| match batch.columns.iter().find(|(name, _)| name == wanted) {
            Some((_, values)) => values.iter(),
            None => panic!("there is no {wanted}"),
        };
        let both = column("openid").zip(column("note"));
        found.extend(both.map(|(openid, note)| format!("{}={}", openid.unwrap(), note.unwrap_or_default())));
        Ok(())
    })?;
    Ok((found, report.encoding))
}

fn all() -> ReadOptions<'static> {
    ReadOptions::of_columns(&[])
}

#[test]
fn the_delimiter_is_the_one_by_which_the_header_has_the_columns_asked_for() {
    for delimiter in [",", "\t", ";", "|"] {
        let header = ["\"openid\"", "note", "rest"].join(delimiter);
        let row = ["oA", &format!("\"x{delimiter}\ny\""), "z"].join(delimiter);
        let content = format!("\n{header}\n{row}\n");
        assert_eq!(read(content.as_bytes(), &all()).unwrap().0, [format!("oA=x{delimiter}\ny")], "{content}");
    }
    let more_commas = read(b"openid;note;a,b,c,d,e\noA;x;,,,,\n", &all()).unwrap();
    assert_eq!(more_commas.0, ["oA=x"], "the columns outweigh the number of fields");
}

#[test]
fn a_delimiter_that_is_ordered_or_named_by_the_file_is_not_guessed() {
    let content = b"openid;note,a\noA;x,1\n";
    let by_comma = ReadOptions { delimiter: Some(b','), ..all() };
    assert!(matches!(read(content, &by_comma), Err(ExportError::MissingColumn { .. })));
    let named = read("\u{FEFF}sep=;\r\nopenid;note\r\noA;x\r\n".as_bytes(), &all()).unwrap();
    assert_eq!(named.0, ["oA=x"]);
}

#[test]
fn a_pipe_that_is_half_of_a_character_is_no_delimiter() {
    let text = "openid|note|last\noA|亅晐|x\noB|\"褆|\n中\"|y\noC|𠮷|z\n";
    let content = encoding_rs::GB18030.encode(text).0.into_owned();
    assert!(content.windows(2).any(|pair| pair[0] >= 0x81 && pair[1] == b'|'), "the trap is a real one");
    let (found, encoding) = read(&content, &all()).unwrap();
    assert_eq!(found, ["oA=亅晐", "oB=褆|\n中", "oC=𠮷"]);
    assert_eq!(encoding, Encoding::Gb18030);
}

#[test]
fn characters_of_four_bytes_alone_tell_gb18030() {
    let text = "openid,note\noA,𠮷𡃁㐂\noB,ḿ\n";
    let content = encoding_rs::GB18030.encode(text).0.into_owned();
    assert_eq!(read(&content, &all()).unwrap(), (vec!["oA=𠮷𡃁㐂".to_owned(), "oB=ḿ".to_owned()], Encoding::Gb18030));
}
