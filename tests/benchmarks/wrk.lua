-- What wrk sends (BENCH_KIND: get, run or mix; BENCH_PATH, BENCH_CALLERS, BENCH_BODY) and how it reports, as one line of JSON.
-- The callers, as in "KEY AGENT,KEY AGENT", take turns; the path and the run are of the caller's agent.
local kind = os.getenv("BENCH_KIND")
local gets, runs = {}, {}
local sent = 0

function init()
    for key, agent in os.getenv("BENCH_CALLERS"):gmatch("([%w_]+) (%d+)") do
        local path = os.getenv("BENCH_PATH"):gsub("{agent_id}", agent)
        local typed = { ["X-API-Key"] = key, ["Content-Type"] = "application/json" }
        table.insert(gets, wrk.format("GET", path, { ["X-API-Key"] = key }))
        table.insert(runs, wrk.format("POST", "/agents/" .. agent .. "/run", typed, os.getenv("BENCH_BODY")))
    end
end

function request()
    sent = sent + 1
    local turn = sent % #gets + 1
    -- the mix: one run in five requests
    if kind == "run" or (kind == "mix" and sent % 5 == 0) then return runs[turn] end
    return gets[turn]
end

function done(summary, latency)
    local errors = summary.errors
    local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    io.write(string.format(
        '{"requests": %d, "seconds": %.6f, "failed": %d, "p50": %.3f, "p99": %.3f}\n',
        summary.requests, summary.duration / 1e6, failed, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3
    ))
end
