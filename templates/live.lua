-- Routes that change without a reload: which instance answers is chosen here, when nginx is about to connect.
--
--   router_routes  name of a process's upstream -> its line; "version": what the router wrote last; "epoch": how often it wrote
--   router_counts  "n PID ADDRESS" requests under way, by worker and instance; "t ADDRESS" the same of all workers, where
--                  the way of choosing asks for it; "f ADDRESS" failures of late, "b ADDRESS" left out until it expires
--
-- A line: METHOD MAX_FAILS FAIL_TIMEOUT HOST|PORT|WEIGHT|KIND..., KIND one of active, backup, down.
local balancer = require "ngx.balancer"
local ngx, tonumber, tostring, random, min = ngx, tonumber, tostring, math.random, math.min
local routes, counts = ngx.shared.router_routes, ngx.shared.router_counts

local live = {}
local known, epoch = {}, nil -- of this worker: the lines it has read, and when that was
local BUSY = -3 -- NGX_BUSY: nobody to ask, which nginx answers with 502

local held = {} -- request id -> the instances it was given, one after the other


local function parse(line)
    local words = {}
    for word in line:gmatch("%S+") do
        words[#words + 1] = word
    end
    local route = { method = words[1], max_fails = tonumber(words[2]), fail_timeout = tonumber(words[3]), active = {}, backup = {} }
    local pid = ngx.worker.pid()
    for n = 4, #words do
        local host, port, weight, kind = words[n]:match("^(.-)|(%d+)|(%d+)|(%a+)$")
        local address = port == "0" and host or host .. ":" .. port
        local peer = {
            host = host, port = tonumber(port), weight = tonumber(weight), address = address,
            count = "n " .. pid .. " " .. address, total = "t " .. address, fails = "f " .. address, bad = "b " .. address,
            current = 0,
        }
        if kind == "active" or kind == "backup" then
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
    route.several = #route.active + #route.backup > 1
    route.totals = route.method == "least_conn" or route.method == "random_two"
    return route
end


local function route_of(name, now)
    if now ~= epoch then
        if epoch == nil then
            math.randomseed(ngx.worker.pid() + ngx.now() * 1000) -- else all workers begin at the same instance
        end
        known, epoch = {}, now
    end
    local route = known[name]
    if route == nil then
        local line = routes:get(name)
        route = line and parse(line) or false
        known[name] = route
    end
    return route
end


local function is_out(route, peer, tried)
    if tried and tried[peer.address] then
        return true
    end
    return route.max_fails > 0 and counts:get("bad") and counts:get(peer.bad) ~= nil
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


local WAYS = { round_robin = by_rotation, least_conn = by_load, ip_hash = by_client, random_two = by_two }


local function choose(route, tried)
    local choice = #route.active > 0 and WAYS[route.method](route, route.active, tried)
    choice = choice or (#route.backup > 0 and by_rotation(route, route.backup, tried))
    -- all failed of late: better one that may answer than a sure error
    return choice or route.active[random(math.max(1, #route.active))]
end


local function hold(route, peer)
    counts:incr(peer.count, 1, 0)
    if route.totals then
        counts:incr(peer.total, 1, 0)
    end
end


local function let_go(one)
    local left = counts:incr(one.peer.count, -1)
    if left and left <= 0 then
        counts:delete(one.peer.count) -- this worker alone counts there; what stayed would push out the count of a long request
    end
    if one.route.totals then
        counts:incr(one.peer.total, -1)
    end
end


local function failed(one)
    local route, peer = one.route, one.peer
    if not route.several or route.max_fails == 0 or one.failed then
        return
    end
    one.failed = true
    local fails = counts:incr(peer.fails, 1, 0, route.fail_timeout)
    if fails and fails >= route.max_fails then
        counts:set(peer.bad, true, route.fail_timeout)
        counts:set("bad", true, route.fail_timeout)
        counts:delete(peer.fails)
    end
end


-- balancer_by_lua
function live.balance()
    local name, id = ngx.var.router_process, ngx.var.request_id
    local mine = held[id]
    local again = balancer.get_last_failure()
    local tried
    if again and mine then
        local last = mine[#mine]
        if again == "failed" then
            failed(last) -- and not "next": an answer that proxy_next_upstream sends on, such as http_404
        end
        let_go(last)
        mine[#mine] = nil
        mine.tried = mine.tried or {}
        mine.tried[last.peer.address] = true
        tried = mine.tried
    end
    for _ = 1, 100 do
        local now = epoch or routes:get("epoch") or 0
        local route = route_of(name, now)
        local peer = route and choose(route, tried)
        if not peer then
            if (routes:get("epoch") or 0) == now then
                return ngx.exit(BUSY)
            end
            known, epoch = {}, routes:get("epoch") or 0
        else
            hold(route, peer)
            -- counted first, then looked again: whoever wrote before it saw the count at zero is heeded here
            if (routes:get("epoch") or 0) == now then
                if mine == nil then
                    mine = {}
                    held[id] = mine
                end
                mine[#mine + 1] = { route = route, peer = peer }
                if not again then
                    balancer.set_more_tries(min(#route.active + #route.backup - 1, 100))
                end
                local ok, why = balancer.set_current_peer(peer.host, peer.port > 0 and peer.port or nil)
                if not ok then
                    ngx.log(ngx.ERR, "router: ", name, ": ", peer.address, ": ", why)
                    return ngx.exit(BUSY)
                end
                return
            end
            let_go({ route = route, peer = peer })
            known, epoch = {}, routes:get("epoch") or 0
        end
    end
    return ngx.exit(BUSY)
end


-- log_by_lua
function live.done()
    local id = ngx.var.request_id
    local mine = held[id]
    if mine == nil then
        return
    end
    held[id] = nil
    for n = 1, #mine do
        local status = ngx.status >= 502 and ngx.var.upstream_status
        if n == #mine and status and (status:match("502$") or status:match("504$")) and (ngx.var.upstream_bytes_received or ""):match("(%d+)$") == "0" then
            failed(mine[n])
        end
        let_go(mine[n])
    end
end


local function put(name, line)
    local ok, why = routes:safe_set(name, line)
    return ok or error(why, 0)
end


local function forget_all_but(kept)
    for _, name in ipairs(routes:get_keys(0)) do
        if name ~= "version" and name ~= "epoch" and not kept[name] then
            routes:delete(name)
        end
    end
end


-- Takes up lines `route NAME<TAB>LINE` and `gone NAME`; with `only`, what is not among them goes as well.
-- What is new is written before the version, and what is gone goes behind it: nobody finds less than he looks for.
local function take(text, to, only)
    local lines, gone = {}, {}
    for line in text:gmatch("[^\n]+") do
        local name, rest = line:match("^route (%S+)\t(.*)$")
        if name then
            lines[name] = rest
        else
            gone[#gone + 1] = line:match("^gone (%S+)$")
        end
    end
    local function write()
        for name, line in pairs(lines) do
            put(name, line)
        end
        put("version", to)
        routes:incr("epoch", 1, 0)
    end
    if not only then
        write()
        for _, name in ipairs(gone) do
            routes:delete(name)
        end
    elseif not pcall(write) then
        forget_all_but(lines) -- nothing asks for these any more, and they may be what fills the memory
        write()
    end
    if only then
        forget_all_but(lines)
    end
end


-- init_by_lua: never raises, for an error here keeps nginx from booting, and `nginx -t` does not see it.
function live.load(path)
    local ok, why = pcall(function()
        local file = assert(io.open(path))
        local text = file:read("*a")
        file:close()
        local to, body, count = text:match("^version (%S+)\n(.*)end (%d+)\n$")
        local _, lines = (body or ""):gsub("\n", "")
        if not to or lines ~= tonumber(count) then
            error("it is not whole", 0)
        end
        -- old workers still answer while a reload makes new ones: what is gone is taken away later
        take(body, to, false)
    end)
    if not ok then
        ngx.log(ngx.ERR, "router: ", path, ": ", tostring(why), ": the routes stay as they are")
    end
end


local function answer(status, text)
    ngx.status = status
    ngx.header.content_type = "text/plain"
    ngx.print(text)
end


local function in_flight()
    local sum, arguments = 0, ngx.req.get_uri_args(0)
    local function each(value)
        return type(value) == "table" and value or { value }
    end
    for _, pid in ipairs(each(arguments.pid)) do
        for _, address in ipairs(each(arguments.address)) do
            sum = sum + math.max(0, counts:get("n " .. pid .. " " .. address) or 0)
        end
    end
    return sum
end


-- content_by_lua of the admin socket, which lies in a directory of the router's own
function live.admin()
    if ngx.req.get_method() == "GET" then
        if ngx.var.uri == "/in-flight" then
            return answer(200, tostring(in_flight()))
        end
        return answer(200, routes:get("version") or "")
    end
    ngx.req.read_body()
    local body = ngx.req.get_body_data()
    if not body and ngx.req.get_body_file() then
        local file = io.open(ngx.req.get_body_file())
        body = file:read("*a")
        file:close()
    end
    local ok, why = pcall(take, body or "", ngx.var.arg_version, ngx.var.arg_only == "1")
    if not ok then
        -- some lines may be written and some lost: what is here is no version that anybody knows
        routes:delete("version")
        routes:incr("epoch", 1, 0)
        return answer(507, tostring(why))
    end
    answer(200, routes:get("version"))
end


return live
