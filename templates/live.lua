-- Routes that change without a reload: which instance answers is chosen here, when nginx is about to connect.
--
--   router_routes  name of a process's upstream -> its line; "version": what the router wrote last; "writes": how often it wrote;
--                  "epoch": counts these, and the times that an instance was found failing; "writing": somebody writes;
--                  "memory SIZE": where the counters lie
--   router_counts  "r PID ADDRESS" which counter has the requests under way, of a worker and an instance, "u PID ADDRESS" which has
--                  its websockets; "counters" how many there are, "free" those that nobody has; "f ADDRESS" failures of late,
--                  "b ADDRESS" left out until it expires, "bad": there is such a one; "x PID" a worker that died, and is being tidied
--
-- A counter is a semaphore (sem_overview(7)) in memory that all processes of this nginx share.  It is posted when a request is
-- given to an instance, and taken down by nginx itself when it frees the request: no Lua runs for that (measured: log_by_lua
-- is a twentieth of what a request costs).  A request without trouble looks into no dictionary.
--
-- A line: METHOD MAX_FAILS FAIL_TIMEOUT HOST|PORT|WEIGHT|KIND... [canary=SHARE], KIND one of active, backup, canary, down; of 10,000
-- clients SHARE get the canaries.
local balancer = require "ngx.balancer"
local bit = require "bit"
local ffi = require "ffi"
local get_request = require("resty.core.base").get_request
local ngx, tonumber, tostring, random, min = ngx, tonumber, tostring, math.random, math.min
local bxor, rshift, log = bit.bxor, bit.rshift, math.log
local C, cast = ffi.C, ffi.cast
local uintptr = ffi.typeof("uintptr_t")
local routes, counts = ngx.shared.router_routes, ngx.shared.router_counts

local live = {}
local known, before = {}, {} -- of this worker: the routes it has read, and those it had read until the write before
local epoch, writes -- when that was
local wary = true -- whether an instance may be left out
local OK = 0
local BUSY = -3 -- NGX_BUSY: nobody to ask, which nginx answers with 502

-- names of our own: another program's declarations of these functions may differ
ffi.cdef [[
typedef struct router_cleanup_s router_cleanup_t;
struct router_cleanup_s { void *handler; void *data; router_cleanup_t *next; };
router_cleanup_t *router_cleanup_add(void *request, size_t size) __asm__("ngx_http_cleanup_add");
void *router_mmap(void *at, size_t size, int protection, int flags, int fd, long offset) __asm__("mmap");
int router_sem_init(void *counter, int is_shared, unsigned value) __asm__("sem_init");
int router_sem_post(void *counter) __asm__("sem_post");
int router_sem_trywait(void *counter) __asm__("sem_trywait");
int router_sem_getvalue(void *counter, int *value) __asm__("sem_getvalue");
int router_kill(int pid, int signal) __asm__("kill");
typedef struct { unsigned epoch; unsigned uncounted; } router_head_t;
]]

-- The memory of the counters: what all look at with each request, the counters of workers, and those of all workers together.
local LINE = 64 -- bytes: a processor shares memory by these, and two workers are not to wait for each other
local OWN, TOGETHER = 1048576, 262144
local SIZE = (1 + OWN + TOGETHER) * LINE -- what is not used takes no room
local WHERE = "memory " .. SIZE -- another release's program may want another size, and a reload brings that one in


-- It lies where it lay before a reload, for the master is still the same: so does the dictionary that says where.
local function memory_of_all()
    local at = routes:get(WHERE)
    if not at then
        local made = C.router_mmap(nil, SIZE, 3, 0x4021, -1, 0) -- to read and write; shared, of no file, without a reserve
        at = tonumber(cast(uintptr, made))
        if at == tonumber(cast(uintptr, -1)) or not routes:safe_set(WHERE, at) then
            error("no memory to count requests in", 0)
        end
    end
    return at
end

local memory = memory_of_all()
assert(C.router_cleanup_add and C.router_sem_trywait) -- an nginx that does not show these takes no live updates: better known now
local head = cast("router_head_t *", memory)
local take_down = cast("void *", C.router_sem_trywait)
local value = ffi.new("int[1]")

local counters = {} -- of this worker: "r PID ADDRESS" -> its counter
local unused = {} -- those that no route names any more, until what they count is over
local addresses = {} -- number of a counter -> the address that it is for


local function number_of(counter)
    C.router_sem_getvalue(counter, value)
    return value[0]
end


local function counter_at(number)
    return cast("void *", memory + number * LINE)
end


-- of all workers; of 262,144 pairs of addresses one has it together, and each other's load
local function counter_together(address)
    return counter_at(1 + OWN + ngx.crc32_long(address) % TOGETHER)
end


-- A counter of this worker alone; nil: there is no room, and from now on nobody believes the counts.
local function counter_of(kind, address)
    local key = kind .. " " .. ngx.worker.pid() .. " " .. address
    local found = counters[key]
    if not found then
        local number = counts:rpop("free")
        if not number then
            counts:safe_add("counters", 0)
            number = counts:incr("counters", 1)
        end
        if not number or number > OWN or not counts:safe_set(key, number) then
            head.uncounted = 1
            return nil
        end
        found = { key = key, number = number, at = counter_at(number), users = 0 }
        C.router_sem_init(found.at, 1, 0)
        counters[key], addresses[number] = found, address
    end
    found.users = found.users + 1
    unused[key] = nil
    return found
end


-- What is not counted in any more goes when it is back at zero: another instance gets it.
local function tidy()
    for key, counter in pairs(unused) do
        if number_of(counter.at) == 0 then
            counts:delete(key)
            counts:lpush("free", counter.number)
            counters[key], unused[key], addresses[counter.number] = nil, nil, nil
        end
    end
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
    local share = words[#words]:match("^canary=(%d+)$")
    if share then
        route.share, route.canary = tonumber(share), {}
    end
    for n = 4, share and #words - 1 or #words do
        local host, port, weight, kind = words[n]:match("^(.-)|(%d+)|(%d+)|(%a+)$")
        local address = port == "0" and host or host .. ":" .. port
        local peer = {
            host = host, port = port ~= "0" and tonumber(port) or nil, weight = tonumber(weight), address = address,
            together = counter_together(address), fails = "f " .. address, bad = "b " .. address, current = 0,
        }
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


local function leave(route)
    for _, peer in ipairs(route.peers) do
        for _, kind in ipairs({ "r", "u" }) do
            local counter = peer[kind]
            if counter then
                counter.users, peer[kind] = counter.users - 1, nil
                if counter.users == 0 then
                    unused[counter.key] = counter
                end
            end
        end
    end
end


-- Whether what this worker goes by is the newest; where it was not, it is from now on.
local function is_up_to_date()
    local now = head.epoch
    if now == epoch then
        return true
    end
    local written = routes:get("writes") or 0
    if written ~= writes then
        for _, route in pairs(before) do
            if route then
                leave(route)
            end
        end
        before, known = known, {}
        tidy()
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
    return number_of(peer.together) / peer.weight
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


-- the next one of the rotation or, if that is busier for its weight, one that is drawn: where nobody is busy the weights are kept
local function by_two(route, among, tried)
    local first, total = by_rotation(route, among, tried), weight_of(among)
    for _ = 1, first and 20 or 0 do
        local second = at(among, random(0, total - 1))
        if second ~= first and not (route.several and is_out(route, second, tried)) then
            return load_of(second) < load_of(first) and second or first
        end
    end
    return first
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
    if route.method ~= "cookie" then -- which marks every client
        ngx.var.router_mark = ngx.var.router_client_cookie
    end
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


local function failed(route, peer)
    if not route.minds_failures then
        return
    end
    counts:safe_add(peer.fails, 0, route.fail_timeout)
    local fails = counts:incr(peer.fails, 1)
    if fails and fails >= route.max_fails then
        counts:safe_set(peer.bad, true, route.fail_timeout)
        if (counts:ttl("bad") or 0) < route.fail_timeout then
            counts:safe_set("bad", true, route.fail_timeout)
        end
        counts:delete(peer.fails)
        -- so that the workers look who it is, and look for none as long as there is none
        head.epoch = routes:incr("epoch", 1, 0) % 4294967296
    end
end


local function failed_at(route, address)
    for _, peer in ipairs(route and route.peers or {}) do
        if peer.address == address then
            return failed(route, peer)
        end
    end
end


-- Which counter a request is counted in stands where nginx reads it as it frees the request, in its list of what is to be done then:
--
--   take_down, counter     of an instance; one that was tried in vain has no take_down any more
--   take_down, counter     of all workers, where the way of choosing asks for it
--   nothing, request       whose they are: a subrequest (auth_request, mirror) has no such list, its main request's ends it
local function note(entry, counter)
    entry.handler, entry.data = take_down, counter
    C.router_sem_post(counter)
end


local function take_back(entry)
    if entry.handler == take_down then
        entry.handler = nil
        C.router_sem_trywait(entry.data)
        return true
    end
    return false
end


-- It was tried and let go: it failed, or what it answered led to another one (X-Accel-Redirect, error_page).  `entry` is what the
-- list begins with; what comes back is why, and the addresses that were tried.
local function put_back(request, entry, name)
    local why, tried, group = nil, nil, {}
    while entry ~= nil do
        local number = (tonumber(cast(uintptr, entry.data)) - memory) / LINE
        if number > 0 and number < SIZE / LINE then
            group[#group + 1] = entry
        elseif group[1] then
            if entry.data == request then
                why = why or balancer.get_last_failure()
                tried = why and (tried or {})
                for _, each in ipairs(group) do
                    local address = addresses[(tonumber(cast(uintptr, each.data)) - memory) / LINE]
                    if take_back(each) and why == "failed" and address then
                        failed_at(route_of(name), address) -- and not "next": an answer that proxy_next_upstream sends on, such as http_404
                    end
                    if not why then
                        each.data = nil
                    elseif address then
                        tried[address] = true
                    end
                end
            end
            group = {}
        end
        entry = entry.next
    end
    return why, tried
end


-- Whether it was given to an instance; nil: the routes changed meanwhile.
local function give(request, entry, name, kind, tried, again)
    local route = route_of(name)
    local peer = route and choose(route, tried)
    if not peer then
        return is_up_to_date() and BUSY or nil
    end
    local counter = peer[kind]
    if not counter then
        counter = counter_of(kind, peer.address)
        peer[kind] = counter
    end
    if counter then
        note(entry, counter.at)
    end
    -- counted first, then looked again: whoever wrote before it saw the count at zero is heeded here
    if not is_up_to_date() then
        take_back(entry)
        return nil
    end
    if route.totals then
        local too = C.router_cleanup_add(request, 0)
        if too ~= nil then
            note(too, peer.together)
        end
    end
    if route.most > 1 and not again then
        balancer.set_more_tries(min(route.most - 1, 100))
    end
    local ok, why = balancer.set_current_peer(peer.host, peer.port)
    if not ok then
        ngx.log(ngx.ERR, "router: ", name, ": ", peer.address, ": ", why)
        return BUSY
    end
    return OK
end


-- balancer_by_lua; without trouble it goes through no loop and makes no table, so that LuaJIT compiles it as a whole.
function live.balance()
    local request, name = cast("void *", get_request()), ngx.var.router_process
    -- a websocket may last for days, and who drains may not want to wait for it
    local kind = ngx.var.router_upgrade == "" and "r" or "u"
    local whose = C.router_cleanup_add(request, 0)
    local entry = C.router_cleanup_add(request, 0)
    if whose == nil or entry == nil then
        return ngx.exit(BUSY) -- no memory
    end
    whose.data = request
    local again, tried
    local others = whose.next -- nginx's own: a request begins with that one
    if others ~= nil and others.next ~= nil then
        again, tried = put_back(request, others, name)
    end
    local given = give(request, entry, name, kind, tried, again)
    if given == nil then
        for _ = 1, 100 do
            given = given or give(request, entry, name, kind, tried, again)
        end
    end
    if given ~= OK then
        return ngx.exit(BUSY)
    end
end


-- log_by_lua of where nginx answers itself, because no instance did: the last that was tried has failed as well.
function live.done()
    if ngx.status < 502 then
        return
    end
    local status = ngx.var.upstream_status or ""
    if (status:match("502$") or status:match("504$")) and (ngx.var.upstream_bytes_received or ""):match("(%d+)$") == "0" then
        failed_at(route_of(ngx.var.router_process), ngx.var.upstream_addr:match("([^, ]+)$"))
    end
end


local function put(name, line)
    local ok, why = routes:safe_set(name, line)
    return ok or error(why, 0)
end


local OTHERS = { version = true, writes = true, epoch = true, writing = true, [WHERE] = true }


local function forget_all_but(kept)
    for _, name in ipairs(routes:get_keys(0)) do
        if not kept[name] and not OTHERS[name] then
            routes:delete(name)
        end
    end
end


local function announce()
    routes:incr("writes", 1, 0)
    head.epoch = routes:incr("epoch", 1, 0) % 4294967296
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


local function is_alive(pid)
    return C.router_kill(tonumber(pid), 0) == 0 or ffi.errno() ~= 3 -- ESRCH
end


-- init_worker_by_lua: what a worker that ended had under way is over, also where all workers' is summed up
function live.begin()
    math.randomseed(ngx.worker.pid() + ngx.now() * 1000) -- else all workers begin at the same instance
    local mine, dead = tostring(ngx.worker.pid()), {}
    for _, key in ipairs(counts:get_keys(0)) do
        local pid, address = key:match("^[ru] (%d+) (.+)$")
        if pid and dead[pid] == nil then
            -- several workers may begin at once: one of them does it
            dead[pid] = (pid == mine or not is_alive(pid)) and counts:safe_add("x " .. pid, true, 10) or false
        end
        if pid and dead[pid] then
            local number = counts:get(key)
            for _ = 1, number_of(counter_at(number)) do
                C.router_sem_trywait(counter_together(address))
            end
            counts:delete(key)
            counts:lpush("free", number)
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
        local found = { r = 0, u = 0 }
        local function add(kind, key)
            local number = counts:get(key)
            found[kind] = found[kind] + (number and number_of(counter_at(number)) or 0)
        end
        for _, key in ipairs(every or {}) do
            local kind, whose = key:match("^([ru]) (%d+) ")
            if whose == pid then
                add(kind, key)
            end
        end
        for _, address in ipairs(every and {} or each(arguments.address)) do
            add("r", "r " .. pid .. " " .. address)
            add("u", "u " .. pid .. " " .. address)
        end
        lines[#lines + 1] = pid .. " " .. found.r .. " " .. found.u
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
        if ngx.var.uri == "/in-flight" and head.uncounted == 0 then
            return answer(200, in_flight())
        elseif ngx.var.uri == "/in-flight" then
            return answer(507, "there was no room to count in: since then nobody knows")
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
