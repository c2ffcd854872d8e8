-- Message ids come in no order that helps: with each group of outcomes their index wrote as many pages as there were rows,
-- more of them the larger the table. It is made when the first event names a message (`deliveries::index_msgids`).
drop index deliveries_by_msgid;
