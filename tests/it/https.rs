//! WeChat as it really is reached: over TLS, with a certificate that is checked.

use crate::house::{House, small};
use crate::sealed::{Sealed, trusting};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_a_night_and_a_push_run_where_the_certificate_is_trusted_and_no_call_is_made_where_it_is_not() {
    let house = House::build(small()).await;
    let behind = house.simulator.base_url();
    let sealed = Sealed::before(behind.trim_start_matches("http://").parse().unwrap(), house.root()).await;
    house.edit("config/lianbo.toml", &behind, &sealed.base);

    let refused = house.run("nightly", &[]).await.ends(1);
    assert!(refused.text().contains("certificate"), "{refused:?}");
    assert_eq!(house.calls("user/get"), 0);
    let asked = house.lianbo(&["check", "--online"]).await.ends(1);
    assert!(asked.text().contains("certificate"), "{asked:?}");

    trusting(&house, &sealed.authority, &["run", "nightly", "-y", "--json"]).await.ends(0);
    trusting(&house, &sealed.authority, &["run", "campaign", "-y", "--json"]).await.ends(0);
    house.everybody_has_one();
}
