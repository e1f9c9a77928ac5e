//! The examples of the standards, what Python makes of the same, and servers that lie, beg and babble.

use proptest::prelude::*;

use super::*;

const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
const CHALLENGE: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
const PROOF: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

fn begun(hash: ScramHash, username: &str, password: &'static str, nonce: &str) -> Scram {
    Scram::with_nonce(hash, username, Bytes::from(password), nonce.to_owned()).unwrap()
}

fn pencil() -> Scram {
    begun(ScramHash::Sha256, "user", "pencil", NONCE)
}

fn answered(scram: &mut Scram, challenge: &str) -> Result<String, ScramError> {
    let Heard::Derive(derivation) = scram.hear(challenge.as_bytes())? else { panic!("it has not asked") };
    let answer = scram.answer(&derivation.derive())?;
    Ok(String::from_utf8(answer.to_vec()).unwrap())
}

#[test]
fn the_exchange_of_rfc_7677_comes_out_to_the_letter() {
    let mut scram = pencil();
    assert_eq!(scram.first(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
    assert_eq!(
        answered(&mut scram, CHALLENGE).unwrap(),
        "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    );
    assert_eq!(scram.proved(Some(PROOF.as_bytes())), Ok(()));
}

#[test]
fn sha_512_and_a_name_with_commas_come_out_as_pythons_hashlib_has_them() {
    let mut scram = begun(ScramHash::Sha512, "hall,3=", "correct horse, \"battery\"=staple", "abcdefgh");
    assert_eq!(scram.first(), "n,,n=hall=2C3=3D,r=abcdefgh");
    assert_eq!(
        answered(&mut scram, "r=abcdefghIJKLMNOP,s=c2FsdFNBTFRzYWx0U0FMVA==,i=5000,x=an,y=extension").unwrap(),
        "c=biws,r=abcdefghIJKLMNOP,p=bWQhHlJwFDFGlAnHlzoAPzde19jZe5fWJZeq77KbVRTfTGN5KmiDVwoGYDY/cTgq4+kbghOyeW806vWbqPd05g=="
    );
    // As an AUTH before CONNACK may bring it.
    let proof = "v=jLYNpz3KQgBuE/5KEejTCNJ/RAovc5cW6+1HYTEyGnOejReKdl1gaYvAD3N4IkS9v0+9nnPVII0tb6r+62rbSA==";
    assert!(matches!(scram.hear(proof.as_bytes()), Ok(Heard::Proof)));
    assert_eq!(scram.proved(None), Ok(()));
}

#[test]
fn each_login_has_a_nonce_of_its_own_and_shows_no_secret() {
    let login = || Scram::new(ScramHash::Sha256, "user", Bytes::from("pencil")).unwrap();
    let (one, other) = (login(), login());
    assert_ne!(one.first(), other.first());
    assert_eq!(one.nonce.len(), 32);
    assert!(!format!("{one:?}").contains("pencil"));
}

#[test]
fn names_and_passwords_that_would_have_to_be_prepared_are_refused() {
    for (name, password) in [("", "p"), ("u", ""), ("h\u{e4}ll", "p"), ("u", "p\u{e4}ss"), ("u\n", "p"), ("u", "p\t")] {
        assert!(matches!(Scram::new(ScramHash::Sha256, name, Bytes::from(password)), Err(ScramError::NotAscii { .. })));
    }
}

#[test]
fn a_challenge_that_asks_for_too_much_or_too_little_is_not_worked_on() {
    let with = |from: &str, to: &str| CHALLENGE.replace(from, to);
    let salt = "W22ZaJ0SNY7soEsUEjb6gQ==";
    let long = "A".repeat(4 * SALT_BYTES_MAX);
    for (challenge, told) in [
        (with("i=4096", "i=4095"), "4095"),
        (with("i=4096", "i=1"), "asks for \u{31} rounds"),
        (with("i=4096", "i=600001"), "600001"),
        (with("i=4096", "i=4294967296"), "4294967296"),
        (with("i=4096", "i=99999999999999999999999999"), "99999999999999999999 "),
        (with("i=4096", "i=+5000"), "+5000"),
        (with("i=4096", "i=05000"), "05000"),
        (with("i=4096", "i="), "asks for  rounds"),
        (with("i=4096", "i=-5000"), "-5000"),
        (with(",i=4096", ""), "its number of rounds is missing"),
        (with(salt, ""), "its salt is none"),
        (with(salt, "W22Z aJ0"), "its salt is none"),
        (with(salt, &long), "its salt is none"),
        (with(",s=", ",t="), "its salt is missing"),
        (with("%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0", ""), "another login"),
        (with("rOprNGfw", "rOprNGfv"), "another login"),
        (with("%hv", " hv"), "another login"),
        (with("r=rO", "q=rO"), "its nonce is missing"),
        (format!("m=must,{CHALLENGE}"), "an extension"),
        (format!("{CHALLENGE},m=must"), "an extension"),
        (format!("{CHALLENGE},x={}", "y".repeat(MESSAGE_BYTES_MAX)), "too long"),
        ("e=unknown-user".to_owned(), "its nonce is missing"),
        (PROOF.to_owned(), "its nonce is missing"),
        (String::new(), "its nonce is missing"),
    ] {
        let mut scram = pencil();
        let error = scram.hear(challenge.as_bytes()).unwrap_err();
        assert!(error.to_string().contains(told), "{challenge:?}: {error}");
        assert_eq!(scram.proved(Some(PROOF.as_bytes())), Err(ScramError::Unproved), "it is over");
    }
    assert!(pencil().hear(b"r=\xff").is_err());
}

#[test]
fn no_server_is_believed_that_does_not_show_that_it_knows_the_password() {
    let ready = || {
        let mut scram = pencil();
        answered(&mut scram, CHALLENGE).unwrap();
        scram
    };
    for (last, told) in [
        (None, ScramError::Unproved),
        (Some(""), ScramError::Unproved),
        (Some("x"), ScramError::Unproved),
        (Some("v="), ScramError::WrongProof),
        (Some("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G8="), ScramError::WrongProof),
        (Some("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95A=="), ScramError::WrongProof),
        (Some("v=!!"), ScramError::WrongProof),
        (Some("e=invalid-proof"), ScramError::Refused { error: "invalid-proof".to_owned() }),
    ] {
        let mut scram = ready();
        assert_eq!(scram.proved(last.map(str::as_bytes)), Err(told));
        assert_eq!(scram.proved(Some(PROOF.as_bytes())), Err(ScramError::Unproved), "it is over");
    }
    // Before it has been asked for a proof, and before it has had ours.
    assert_eq!(pencil().proved(Some(PROOF.as_bytes())), Err(ScramError::Unproved));
    let mut scram = pencil();
    assert!(scram.hear(CHALLENGE.as_bytes()).is_ok());
    assert_eq!(scram.proved(Some(PROOF.as_bytes())), Err(ScramError::Unproved));
    // A second challenge, and anything behind the proof.
    let mut scram = ready();
    assert_eq!(scram.hear(CHALLENGE.as_bytes()).unwrap_err(), ScramError::Malformed { what: OUT_OF_TURN });
    let mut scram = ready();
    scram.hear(PROOF.as_bytes()).unwrap();
    assert!(scram.hear(PROOF.as_bytes()).is_err());
}

/// What a hostile server may say: a right message, bent, or anything.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let whole = prop_oneof![Just(CHALLENGE), Just(PROOF), Just("e=other-error"), Just("")];
    let change = (any::<prop::sample::Index>(), prop_oneof![any::<u8>(), Just(b','), Just(b'='), Just(b'm')]);
    let bent = (whole, prop::collection::vec((change, 0..3_u8), 0..4)).prop_map(|(text, changes)| {
        let mut bytes = text.as_bytes().to_vec();
        for ((at, byte), kind) in changes {
            let at = at.index(bytes.len() + 1);
            match (kind, bytes.get_mut(at)) {
                (0, Some(place)) => *place = byte,
                (1, _) => bytes.insert(at, byte),
                _ => bytes.truncate(at),
            }
        }
        bytes
    });
    prop_oneof![4 => bent, 1 => prop::collection::vec(any::<u8>(), 0..4096)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_a_server_says_the_login_ends_and_only_the_right_proof_is_one(
        messages in prop::collection::vec(message(), 1..6),
        last in prop::option::of(message()),
    ) {
        let mut scram = pencil();
        let (mut is_whole, mut was_proved, mut work) = (true, false, 0);
        for message in &messages {
            match scram.hear(message) {
                Ok(Heard::Derive(derivation)) => {
                    work += derivation.iterations.get();
                    prop_assert!((ITERATIONS_MIN..=ITERATIONS_MAX).contains(&derivation.iterations.get()));
                    // What a salt that was bent makes of the password is not waited for.
                    let keys = match message == CHALLENGE.as_bytes() {
                        true => derivation.derive(),
                        false => Keys { client: vec![1; 32], server: vec![2; 32] },
                    };
                    scram.answer(&keys).unwrap();
                }
                Ok(Heard::Proof) => was_proved = true,
                Err(_) => is_whole = false,
            }
        }
        prop_assert!(work <= ITERATIONS_MAX, "it works once");
        let is_believed = scram.proved(last.as_deref()).is_ok();
        let is_proof = |message: &[u8]| message == PROOF.as_bytes() || message.starts_with(format!("{PROOF},").as_bytes());
        let is_shown = was_proved || last.as_deref().is_some_and(is_proof);
        prop_assert!(!is_believed || (is_whole && is_shown && messages[0].starts_with(CHALLENGE.as_bytes())));
    }
}
