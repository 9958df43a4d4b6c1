//! The program `tailwater-bench`; see the library beside it.

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() -> anyhow::Result<()> {
    tailwater_bench::main().await
}
