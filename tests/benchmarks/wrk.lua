-- What wrk sends (BENCH_KIND: get, run or mix; BENCH_PATH, BENCH_KEY, BENCH_BODY) and how it reports, as one line of JSON.
local key = { ["X-API-Key"] = os.getenv("BENCH_KEY") }
local typed = { ["X-API-Key"] = os.getenv("BENCH_KEY"), ["Content-Type"] = "application/json" }
local kind, path = os.getenv("BENCH_KIND"), os.getenv("BENCH_PATH")
local get, run
local sent = 0

function init()
    if kind ~= "run" then get = wrk.format("GET", path, key) end
    if kind ~= "get" then run = wrk.format("POST", "/agents/1/run", typed, os.getenv("BENCH_BODY")) end
end

function request()
    sent = sent + 1
    -- the mix: one run in five requests
    if kind == "run" or (kind == "mix" and sent % 5 == 0) then return run end
    return get
end

function done(summary, latency)
    local errors = summary.errors
    local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    io.write(string.format(
        '{"requests": %d, "seconds": %.6f, "failed": %d, "p50": %.3f, "p99": %.3f}\n',
        summary.requests, summary.duration / 1e6, failed, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3
    ))
end
