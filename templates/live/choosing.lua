-- Which of them answers: the ways of `load-balancing`, and the clients of a canary.


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
    for _ = 1, first and #among > 1 and 20 or 0 do
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
