//! An application on the crate `testground` as it is: nothing in it knows that it may run on another machine.

use std::{borrow::Cow, env, error::Error, fs};

use serde_json::json;
use testground::{client::Client, Timestamp, WriteQuery};
use tokio_stream::StreamExt;

fn main() -> Result<(), Box<dyn Error>> {
    let count = without_sidecar()?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let client = Client::new_and_init().await?;
        match client.run_parameters().test_case.as_str() {
            "sync" => meet(client, count).await,
            "fail" => Ok(client.record_failure("this case always fails").await?),
            "crash" => panic!("this case always crashes"),
            other => Err(format!("no test case is called {other}").into()),
        }
    })
}

/// How many instances there are; only a word of the environment, since the crate is told that there are none.
///
/// Under any `local:exec` version 0.4.0 panics in `new_and_init`: where there is no sidecar it does not answer its own
/// wait for the network. Told that there is one and nobody to wait for, it has that wait, and those for its sequence
/// numbers, met at once.
fn without_sidecar() -> Result<u64, Box<dyn Error>> {
    let count = env::var("TEST_INSTANCE_COUNT")?.parse()?;
    env::set_var("TEST_SIDECAR", "true");
    env::set_var("TEST_INSTANCE_COUNT", "0");
    env::set_var("TEST_GROUP_INSTANCE_COUNT", "0");
    Ok(count)
}

/// Everybody meets at a barrier; the first one there publishes, and everybody hears it.
async fn meet(client: Client, count: u64) -> Result<(), Box<dyn Error>> {
    let number = client.signal_and_wait("ready", count).await?;
    let parameters = client.run_parameters();
    let greeting = &parameters.test_instance_params["greeting"];
    if number == 1 {
        let said = json!({ "greeting": greeting, "from": parameters.hostname });
        client.publish("greetings", Cow::Owned(said)).await?;
    }
    let greetings = client.subscribe("greetings", 16).await;
    let heard = Box::pin(greetings).next().await.ok_or("the subscription ended")??;
    if heard["greeting"] != greeting.as_str() {
        return Err(format!("heard {heard}").into());
    }
    client.record_message(format!("number {number}, {}, heard {heard}", env::consts::ARCH));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let point = WriteQuery::new(Timestamp::Milliseconds(now.as_millis()), "number");
    client.record_metric(point.add_field("value", number as f64)).await?;
    let told = json!({ "number": number, "arch": env::consts::ARCH, "heard": heard });
    fs::write(parameters.test_outputs_path.join("heard.json"), told.to_string())?;
    client.signal_and_wait("done", count).await?;
    Ok(client.record_success().await?)
}
