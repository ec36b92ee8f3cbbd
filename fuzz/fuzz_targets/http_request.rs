#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| modelyard_gateway::fuzz::http_request(data));
