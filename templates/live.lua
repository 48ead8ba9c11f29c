-- Routes that change without a reload: which instance answers is chosen here, when nginx is about to connect.
--
--   router_routes  name of a process's upstream -> its line; "version": what the router wrote last; "writes": how often it wrote;
--                  "epoch": counts these, and the times that an instance was found failing; "writing": somebody writes
--   router_counts  "n PID ADDRESS" requests under way, by worker and instance, "w PID ADDRESS" websockets; "t ADDRESS" both of
--                  all workers, where the way of choosing asks for it; "f ADDRESS" failures of late, "b ADDRESS" left out
--                  until it expires, "bad": there is such a one; "x PID" a worker that died, and is being taken off the totals
--
-- A request without trouble looks into this memory three times: it counts, looks at the epoch, and counts back.
--
-- A line: METHOD MAX_FAILS FAIL_TIMEOUT HOST|PORT|WEIGHT|KIND... [canary=SHARE], KIND one of active, backup, canary, down; of 10,000
-- clients SHARE get the canaries.
local balancer = require "ngx.balancer"
local bit = require "bit"
local ffi = require "ffi"
local get_request = require("resty.core.base").get_request
local ngx, tonumber, tostring, random, min = ngx, tonumber, tostring, math.random, math.min
local bxor, rshift, log = bit.bxor, bit.rshift, math.log
local uintptr = ffi.typeof("uintptr_t")
local routes, counts = ngx.shared.router_routes, ngx.shared.router_counts

local live = {}
local known, before = {}, {} -- of this worker: the routes it has read, and those it had read until the write before
local epoch, writes -- when that was
local wary = true -- whether an instance may be left out
local BUSY = -3 -- NGX_BUSY: nobody to ask, which nginx answers with 502

local held = {} -- request -> the count that it was given
local refused = {} -- request -> the addresses that it was sent on from
local parts, wholes = {}, 0 -- request id -> its subrequests that were given one; how many have such


-- What a request is known by is where it lies in this worker's memory, from its first byte to the log phase.
local function current()
    local at = tonumber(ffi.cast(uintptr, get_request())) -- no tail call: a trace would end here
    return at
end


local function parse(line)
    local words = {}
    for word in line:gmatch("%S+") do
        words[#words + 1] = word
    end
    local route = {
        line = line, method = words[1], max_fails = tonumber(words[2]), fail_timeout = tonumber(words[3]),
        active = {}, backup = {}, peers = {},
    }
    local pid = ngx.worker.pid()
    local share = words[#words]:match("^canary=(%d+)$")
    if share then
        route.share, route.canary = tonumber(share), {}
    end
    for n = 4, share and #words - 1 or #words do
        local host, port, weight, kind = words[n]:match("^(.-)|(%d+)|(%d+)|(%a+)$")
        local address = port == "0" and host or host .. ":" .. port
        local peer = {
            host = host, port = tonumber(port), weight = tonumber(weight), address = address,
            total = "t " .. address, fails = "f " .. address, bad = "b " .. address, current = 0,
        }
        -- what a request is given: the same table each time, so that none is made for it
        peer.request = { route = route, peer = peer, key = "n " .. pid .. " " .. address }
        peer.websocket = { route = route, peer = peer, key = "w " .. pid .. " " .. address }
        route.peers[#route.peers + 1] = peer
        if kind == "active" or kind == "backup" or kind == "canary" then
            local among = route[kind]
            among[#among + 1] = peer
        end
    end
    if #route.active == 0 then
        route.active, route.backup = route.backup, {}
    end
    -- workers begin at different instances, so that few requests are spread as well as many
    if #route.active > 0 then
        route.active[random(#route.active)].current = 1
    end
    route.most = #route.active + #route.backup + (share and #route.canary or 0)
    route.several = route.most > 1
    route.totals = route.method == "least_conn" or route.method == "random_two"
    route.minds_failures = route.several and route.max_fails > 0
    return route
end


-- A count stays when it is back at zero, for the next request.  It goes when its route went: what stayed for ever would push
-- out the count of a long request one day.
local function leave(route)
    for _, peer in ipairs(route.peers) do
        for _, one in ipairs({ peer.request, peer.websocket }) do
            one.is_left = true
            if counts:get(one.key) == 0 then
                counts:delete(one.key) -- this worker alone counts there
            end
        end
        if route.totals and (counts:get(peer.total) or 1) <= 0 then
            counts:delete(peer.total)
        end
    end
end


-- Whether what this worker goes by is the newest; where it was not, it is from now on.
local function is_up_to_date()
    local now = routes:get("epoch") or 0
    if now == epoch then
        return true
    end
    if epoch == nil then
        math.randomseed(ngx.worker.pid() + ngx.now() * 1000) -- else all workers begin at the same instance
    end
    local written = routes:get("writes") or 0
    if written ~= writes then
        for _, route in pairs(before) do
            if route then
                leave(route)
            end
        end
        before, known = known, {}
    end
    epoch, writes, wary = now, written, true
    return false
end


local function route_of(name)
    local route = known[name]
    if route == nil then
        local line, old = routes:get(name), before[name]
        if old and old.line == line then
            route = old -- and its turn in the rotation
        else
            if old then
                leave(old)
            end
            route = line and parse(line) or false
        end
        known[name], before[name] = route, nil
    end
    return route
end


local function is_out(route, peer, tried)
    if tried and tried[peer.address] then
        return true
    end
    return wary and route.max_fails > 0 and counts:get(peer.bad) ~= nil
end


-- nginx's own smooth weighted rotation
local function by_rotation(route, among, tried)
    local best, total = nil, 0
    for n = 1, #among do
        local peer = among[n]
        if not (route.several and is_out(route, peer, tried)) then
            peer.current = peer.current + peer.weight
            total = total + peer.weight
            if best == nil or peer.current > best.current then
                best = peer
            end
        end
    end
    if best then
        best.current = best.current - total
    end
    return best
end


local function load_of(peer)
    return (counts:get(peer.total) or 0) / peer.weight
end


local function by_load(route, among, tried)
    local least, best = nil, {}
    for n = 1, #among do
        local peer = among[n]
        if not (route.several and is_out(route, peer, tried)) then
            local load = load_of(peer)
            if least == nil or load < least then
                least, best = load, { peer }
            elseif load == least then
                best[#best + 1] = peer
            end
        end
    end
    return by_rotation(route, best, tried)
end


local function at(among, point)
    for n = 1, #among do
        point = point - among[n].weight
        if point < 0 then
            return among[n]
        end
    end
end


local function weight_of(among)
    local total = 0
    for n = 1, #among do
        total = total + among[n].weight
    end
    return total
end


-- the client's network, as nginx's ip_hash takes it: three octets of IPv4, all of IPv6
local function by_client(route, among, tried)
    local client = ngx.var.remote_addr
    local key = client:match("^(%d+%.%d+%.%d+)%.%d+$") or client
    for again = 0, 19 do
        local peer = at(among, ngx.crc32_short(again == 0 and key or key .. again) % weight_of(among))
        if not (route.several and is_out(route, peer, tried)) then
            return peer
        end
    end
    return by_rotation(route, among, tried)
end


local function by_two(route, among, tried)
    local first, second
    for _ = 1, 20 do
        local peer = at(among, random(0, weight_of(among) - 1))
        if not (route.several and is_out(route, peer, tried)) then
            if first == nil then
                first = peer
            elseif peer ~= first then
                second = peer
                break
            end
        end
    end
    if first and second then
        return load_of(second) < load_of(first) and second or first
    end
    return first or by_rotation(route, among, tried)
end


local function times(a, b) -- of 32 bits, which a product would not fit
    local low = a % 65536
    return (low * b + (a - low) / 65536 * b % 65536 * 65536) % 4294967296
end


-- What crc32 makes of two texts differs by the same bits for all that they end in; this (the end of MurmurHash3) parts them.
local function mixed(bits)
    bits = times(bxor(bits, rshift(bits, 16)) % 4294967296, 0x85ebca6b)
    bits = times(bxor(bits, rshift(bits, 13)) % 4294967296, 0xc2b2ae35)
    return bxor(bits, rshift(bits, 16)) % 4294967296
end


-- Each instance draws for the client, by its weight, and the highest wins: one that comes or goes moves its own clients alone.
local function by_mark(route, among, tried)
    local client, best, highest = ngx.crc32_short(ngx.var.router_client), nil, nil
    for n = 1, #among do
        local peer = among[n]
        if not (route.several and is_out(route, peer, tried)) then
            local draw = log((mixed(bxor(client, ngx.crc32_short(peer.address)) % 4294967296) + 0.5) / 4294967296) / peer.weight
            if best == nil or draw > highest then
                best, highest = peer, draw
            end
        end
    end
    return best
end


local WAYS = { round_robin = by_rotation, least_conn = by_load, ip_hash = by_client, random_two = by_two, cookie = by_mark }


-- Clients and not requests are parted: by what their cookie says from the second request on.
local function is_in_canary(route)
    ngx.var.router_mark = ngx.var.router_client_cookie
    return ngx.crc32_short(ngx.var.router_client) % 10000 < route.share
end


local function choose(route, tried)
    if not route.several and not route.canary then
        return route.active[1]
    end
    if wary then
        wary = counts:get("bad") ~= nil
    end
    if route.canary and is_in_canary(route) then
        local canary = WAYS[route.method](route, route.canary, tried)
        if canary then
            return canary
        end
    end
    local choice = #route.active > 0 and WAYS[route.method](route, route.active, tried)
    choice = choice or (#route.backup > 0 and by_rotation(route, route.backup, tried))
    -- all failed of late: better one that may answer than a sure error
    return choice or route.active[random(math.max(1, #route.active))]
end


-- A request that asks for an upgrade is a websocket: it may last for days, and who drains may not want to wait for it.
local function hold(peer)
    local one = ngx.var.router_upgrade == "" and peer.request or peer.websocket
    counts:incr(one.key, 1, 0)
    if one.route.totals then
        counts:incr(peer.total, 1, 0)
    end
    return one
end


local function let_go(one)
    local left = counts:incr(one.key, -1)
    if one.is_left and left and left <= 0 then
        counts:delete(one.key)
    end
    if one.route.totals then
        left = counts:incr(one.peer.total, -1)
        if one.is_left and left and left <= 0 then
            counts:delete(one.peer.total)
        end
    end
end


local function failed(one)
    local route, peer = one.route, one.peer
    if not route.minds_failures then
        return
    end
    local fails = counts:incr(peer.fails, 1, 0, route.fail_timeout)
    if fails and fails >= route.max_fails then
        counts:set(peer.bad, true, route.fail_timeout)
        if (counts:ttl("bad") or 0) < route.fail_timeout then
            counts:set("bad", true, route.fail_timeout)
        end
        counts:delete(peer.fails)
        routes:incr("epoch", 1, 0) -- so that the workers look who it is, and look for none as long as there is none
    end
end


-- It was tried and let go: it failed, or what it answered led to another one (X-Accel-Redirect, error_page).
local function put_back(request, one, why)
    held[request] = nil
    if why == "failed" then
        failed(one) -- and not "next": an answer that proxy_next_upstream sends on, such as http_404
    end
    let_go(one)
    local tried = why and (refused[request] or {}) or nil
    if tried then
        tried[one.peer.address] = true
    end
    refused[request] = tried
    return tried
end


-- A subrequest (auth_request, mirror) has no log phase: it ends with the whole.
local function note_part(request)
    local id = ngx.var.request_id
    if not parts[id] then
        parts[id], wholes = {}, wholes + 1
    end
    table.insert(parts[id], request)
end


-- balancer_by_lua
function live.balance()
    local request, name = current(), ngx.var.router_process
    local last, again, tried = held[request], nil, nil
    if last then
        again = balancer.get_last_failure()
        tried = put_back(request, last, again)
    elseif ngx.is_subrequest then
        note_part(request)
    end
    for _ = 1, 100 do
        local route = route_of(name)
        local peer = route and choose(route, tried)
        if not peer then
            if is_up_to_date() then
                return ngx.exit(BUSY)
            end
        else
            local one = hold(peer)
            -- counted first, then looked again: whoever wrote before it saw the count at zero is heeded here
            if is_up_to_date() then
                held[request] = one
                if route.most > 1 and not again then
                    balancer.set_more_tries(min(route.most - 1, 100))
                end
                local ok, why = balancer.set_current_peer(peer.host, peer.port > 0 and peer.port or nil)
                if not ok then
                    ngx.log(ngx.ERR, "router: ", name, ": ", peer.address, ": ", why)
                    return ngx.exit(BUSY)
                end
                return
            end
            let_go(one)
        end
    end
    return ngx.exit(BUSY)
end


local function finish(request)
    local one = held[request]
    if one then
        held[request] = nil
        let_go(one)
    end
    if refused[request] then
        refused[request] = nil
    end
end


-- log_by_lua
function live.done()
    local request = current()
    local one = held[request]
    if one and one.route.minds_failures and ngx.status >= 502 then
        local status = ngx.var.upstream_status or ""
        if (status:match("502$") or status:match("504$")) and (ngx.var.upstream_bytes_received or ""):match("(%d+)$") == "0" then
            failed(one)
        end
    end
    finish(request)
    if wholes > 0 and not ngx.is_subrequest then
        local id = ngx.var.request_id
        for _, part in ipairs(parts[id] or {}) do
            finish(part)
        end
        if parts[id] then
            parts[id], wholes = nil, wholes - 1
        end
    end
end


local function put(name, line)
    local ok, why = routes:safe_set(name, line)
    return ok or error(why, 0)
end


local function forget_all_but(kept)
    for _, name in ipairs(routes:get_keys(0)) do
        if not kept[name] and name ~= "version" and name ~= "writes" and name ~= "epoch" and name ~= "writing" then
            routes:delete(name)
        end
    end
end


local function announce()
    routes:incr("writes", 1, 0)
    routes:incr("epoch", 1, 0)
end


-- Takes up lines `route NAME<TAB>LINE` and `gone NAME`; with `only`, what is not among them goes as well.
-- What is new is written first, and what is gone goes when that is known: nobody finds less than he looks for.  And then that
-- is said once more, for who looked in between goes by what is gone now.
local function take(text, to, only)
    local lines, gone = {}, {}
    for line in text:gmatch("[^\n]+") do
        local name, rest = line:match("^route (%S+)\t(.*)$")
        local left = not name and line:match("^gone (%S+)$")
        if name then
            lines[name], gone[name] = rest, nil
        elseif left then
            lines[left], gone[left] = nil, true
        end
    end
    local function write()
        for name, line in pairs(lines) do
            put(name, line)
        end
        announce()
    end
    routes:delete("version") -- where this worker is killed half-way, nobody takes what is there for the one or the other
    if only and not pcall(write) then
        forget_all_but(lines) -- nothing asks for these any more, and they may be what fills the memory
        write()
    elseif not only then
        write()
    end
    if only then
        forget_all_but(lines)
    end
    for name in pairs(gone) do
        routes:delete(name)
    end
    announce()
    put("version", to)
end


local function read(path)
    local file = assert(io.open(path))
    local text = file:read("*a")
    file:close()
    return text
end


-- The changes that came to a snapshot later (endpoints.log), and the version that they come to; what is not whole is left out.
local function later(path, version)
    local ok, text = pcall(read, path)
    local head = "of " .. version .. "\n"
    if not ok or text:sub(1, #head) ~= head then
        return "", version
    end
    local from, at = #head + 1, #head + 1
    while true do
        local begins, ends, to, crc = text:find("end (%S+) (%d+)\n", at)
        if not begins then
            break
        end
        if text:sub(begins - 1, begins - 1) == "\n" then
            if ngx.crc32_long(text:sub(from, ends - #crc - 1)) ~= tonumber(crc) then
                break
            end
            version, from = to, ends + 1
        end
        at = ends + 1
    end
    return text:sub(#head + 1, from - 1), version
end


-- init_by_lua: never raises, for an error here keeps nginx from booting, and `nginx -t` does not see it.
function live.load(path)
    local ok, why = pcall(function()
        local text = read(path)
        local to, body, count = text:match("^version (%S+)\n(.*)end (%d+)\n$")
        local _, lines = (body or ""):gsub("\n", "")
        if not to or lines ~= tonumber(count) then
            error("it is not whole", 0)
        end
        local changes, last = later((path:gsub("[^/]*$", "endpoints.log")), to)
        -- old workers still answer while a reload makes new ones: what is gone is taken away later
        take(body .. changes, last, false)
    end)
    if not ok then
        ngx.log(ngx.ERR, "router: ", path, ": ", tostring(why), ": the routes stay as they are")
    end
end


pcall(ffi.cdef, "int kill(int pid, int sig);")


local function is_alive(pid)
    return ffi.C.kill(tonumber(pid), 0) == 0 or ffi.errno() ~= 3 -- ESRCH
end


-- init_worker_by_lua: what a worker that was killed had under way is over, also where all workers' is summed up
function live.begin()
    local mine, dead = tostring(ngx.worker.pid()), {}
    for _, key in ipairs(counts:get_keys(0)) do
        local pid, address = key:match("^[nw] (%d+) (.+)$")
        if pid and dead[pid] == nil then
            -- several workers may begin at once: one of them takes it off
            dead[pid] = (pid == mine or not is_alive(pid)) and counts:add("x " .. pid, true, 10) or false
        end
        if pid and dead[pid] then
            local left, total = counts:get(key) or 0, "t " .. address
            counts:delete(key)
            if left > 0 and (counts:incr(total, -left) or 0) < 0 then
                counts:delete(total)
            end
        end
    end
end


local function answer(status, text)
    ngx.status = status
    ngx.header.content_type = "text/plain"
    ngx.print(text)
end


-- "PID REQUESTS WEBSOCKETS" of each of these workers, at these addresses or at all
local function in_flight()
    local arguments, lines = ngx.req.get_uri_args(0), {}
    local function each(value)
        return type(value) == "table" and value or { value }
    end
    local every = not arguments.address and counts:get_keys(0)
    for _, pid in ipairs(each(arguments.pid)) do
        local found = { n = 0, w = 0 }
        local function add(kind, key)
            found[kind] = found[kind] + math.max(0, counts:get(key) or 0)
        end
        for _, key in ipairs(every or {}) do
            local kind, whose = key:match("^([nw]) (%d+) ")
            if whose == pid then
                add(kind, key)
            end
        end
        for _, address in ipairs(every and {} or each(arguments.address)) do
            add("n", "n " .. pid .. " " .. address)
            add("w", "w " .. pid .. " " .. address)
        end
        lines[#lines + 1] = pid .. " " .. found.n .. " " .. found.w
    end
    return table.concat(lines, "\n")
end


-- "VERSION WRITES"
local function state()
    return (routes:get("version") or "") .. " " .. (routes:get("writes") or 0)
end


-- One at a time, of all workers.  It names the number of writes that it knows of: one that comes late, when he who sent it
-- gave up and wrote something else, is refused.  The version would not do for that: it may be what it was, put back.
local function change(body)
    local too_late = ngx.now() + 5
    while true do
        local ok, why = routes:safe_add("writing", true, 30) -- it ends by itself, for its writer may be killed
        if ok or why ~= "exists" then
            break
        end
        if ngx.now() > too_late then
            return answer(503, "somebody else is changing them")
        end
        ngx.sleep(0.005)
    end
    local from = ngx.var.arg_from
    if from and tonumber(from) ~= (routes:get("writes") or 0) then
        routes:delete("writing")
        return answer(409, state())
    end
    local ok, why = pcall(take, body, ngx.var.arg_version, ngx.var.arg_only == "1")
    if not ok then
        -- some lines may be written and some lost: what is here is no version that anybody knows
        routes:delete("version")
        announce()
    end
    routes:delete("writing")
    answer(ok and 200 or 507, ok and state() or tostring(why))
end


-- content_by_lua of the admin socket, which lies in a directory of the router's own
function live.admin()
    if ngx.req.get_method() == "GET" then
        if ngx.var.uri == "/in-flight" then
            return answer(200, in_flight())
        end
        return answer(200, state())
    end
    ngx.req.read_body()
    local body = ngx.req.get_body_data()
    if not body and ngx.req.get_body_file() then
        local file = io.open(ngx.req.get_body_file())
        body = file:read("*a")
        file:close()
    end
    change(body or "")
end


return live
