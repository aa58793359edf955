//! IGA without a log: its events have no subscriber. The difference to `iga` is what the log costs.

use iga::app::App;
use iga::config::Config;
use iga::runtime;
// Its allocator is that of the service.
use iga_benches as _;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), String> {
    let config = Config::from_vars(|name| std::env::var(name).ok());
    let config = config.map_err(|problems| problems.to_string())?;
    runtime::run(App::new(config)).await
}
