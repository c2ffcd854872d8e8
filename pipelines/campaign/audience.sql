-- Who is to get the message: one row a person, at least the follower's `openid`.
-- Every other column is a variable of the message. Who is suppressed, gone or capped need not be left out here.
select
    i.oa_openid as openid,
    i.unionid,
    i.mp_openid,
    $product as product,
    $price as price
from identities as i
join mall_users as u
    on u.openid = i.mp_openid
where i.account = 'main'
    and i.miniprogram = 'mall'
    and ($city = '*' or u.city = $city)
