//! Times of the cores.

use criterion::Criterion;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for (name, prepare) in tailwater_micro::CORES {
        let (mut work, mut rounds) = (prepare(), 0);
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| {
                work(rounds);
                rounds += 1;
            });
        });
    }
    criterion.final_summary();
}
