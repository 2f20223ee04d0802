-- The external load generator's script: wrk -t1 -c32 -d30s --timeout 60s -s benchmarks/load.lua URL -- INPUT OUTPUT
-- Every connection streams completions of OUTPUT tokens for random prompts of INPUT token ids, one after the other, so
-- that tokens a second are requests a second times OUTPUT. Answers that are not 200 are counted by wrk as errors.

local threads = {}

function setup(thread)
   table.insert(threads, thread)
end

function init(args)
   input, output = tonumber(args[1] or 128), tonumber(args[2] or 128)
   math.randomseed(1)
   wrk.method = "POST"
   wrk.headers["Content-Type"] = "application/json"
end

function request()
   local ids = {}
   for i = 1, input do ids[i] = math.random(100, 10000) end
   local body = string.format(
      '{"prompt":[%s],"max_tokens":%d,"temperature":0,"ignore_eos":true,"stream":true}', table.concat(ids, ","), output)
   return wrk.format(nil, "/v1/completions", nil, body)
end

function done(summary, latency, requests)
   local seconds = summary.duration / 1e6
   local errors, output = summary.errors, threads[1]:get("output")
   io.write(string.format('{"requests": %d, "errors": %d, "duration_s": %.3f, "output_tok_s": %.2f}\n', summary.requests,
      errors.connect + errors.read + errors.write + errors.status + errors.timeout, seconds,
      summary.requests * output / seconds))
end
